"""What the program suggests to type next can be typed."""

import shlex

from support.programs import run_command


def test_the_next_step_after_prepare_works_in_a_folder_of_any_name(tmp_path):
    folder = tmp_path / 'it\'s my "shards" ${x}'
    arguments = ["+experiment=smoke", f"output_dir={tmp_path / 'run'}"]
    quoted = str(folder).replace('"', '\\"').replace("$", "\\$")
    output = run_command("prepare", *arguments, f'data.prepared_dir="{quoted}"', "num_processes=1")
    (suggestion,) = shlex.split(output.splitlines()[-1].split(" and ", 1)[1])
    assert (folder / "manifest.json").exists()
    shown = run_command("inspect_data", *arguments, suggestion, "documents=0")
    assert "step 1: 8 micro-batches" in shown
