"""`evaluate models=[...]`: one table from whatever has happened on the way."""

import json
import subprocess
import time

import pytest
import yaml

from neobert_train.config.tasks import GLUE
from support.architectures import ARCHITECTURES, write_folder
from support.glue import write_glue
from support.programs import Forked, find_python, finish, fork_ranks, run_command

TASKS = ("sst2", "rte", "stsb")
REDUCED = [
    "tasks=[sst2,rte,stsb]", "grid.learning_rates=[1e-3,3e-3]", "grid.seeds=[0]", "grid.max_length=16",
]  # fmt: skip
NUM_CELLS = 2 * 3 * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer, finished_run):
    """A folder with models and data, and the command over them."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_folder(folder / "distilbert", "distilbert", tokenizer)
    write_glue(folder / "glue", num_train=32, num_evaluation=20, tasks=TASKS)
    (folder / "run").symlink_to(finished_run)
    return folder


def build_arguments(output, *others):
    models = "models=[run,distilbert]"
    return ["evaluate", models, *REDUCED, "data_dir=glue", f"output={output}", *others]


@pytest.fixture(scope="module")
def undisturbed(folder):
    return run_command(*build_arguments("undisturbed"), cwd=folder)


def count_cells(output):
    return len(list_cells(output))


def list_cells(output):
    return list((output / "cells").glob("*/[!.]*.json"))


def test_a_table_of_models_by_tasks_is_printed_and_written(folder, undisturbed):
    results = json.loads((folder / "undisturbed/results.json").read_text())
    (run, distilbert) = results["models"]
    assert run.startswith("run@")
    assert results["tasks"] == [*TASKS, "mean"]
    assert count_cells(folder / "undisturbed") == NUM_CELLS
    assert f"| {distilbert} |" in undisturbed
    assert (folder / "undisturbed/results.md").read_text().strip() in undisturbed
    for row in results["rows"]:
        assert -1 <= row["low"] <= row["value"] <= row["high"] <= 1


def test_killed_three_times_and_taken_up_by_two_the_table_is_the_same(folder, undisturbed):
    output = folder / "disturbed"
    for least in (1, 3, 5):
        program = Forked("neobert_train", *build_arguments("disturbed"), cwd=folder)
        deadline = time.monotonic() + 120
        while count_cells(output) < least and time.monotonic() < deadline:
            time.sleep(0.05)
        program.kill()
        program.wait(30)
    kept = {path: path.stat().st_mtime_ns for path in list_cells(output)}
    both = [Forked("neobert_train", *build_arguments("disturbed"), cwd=folder) for _ in range(2)]
    for program in both:
        finish(program)
    assert count_cells(output) == NUM_CELLS
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    for name in ("results.csv", "results.json", "results.md"):
        assert (output / name).read_text().replace("disturbed/", "") == (
            folder / "undisturbed" / name
        ).read_text().replace("undisturbed/", "")


def test_processes_of_a_launcher_share_the_cells(folder, undisturbed, monkeypatch):
    arguments = build_arguments("launched")
    monkeypatch.chdir(folder)
    main, other = fork_ranks("neobert_train", *arguments)
    assert "wrote launched/results.json" in finish(main)
    assert "Results" not in finish(other)
    assert (folder / "launched/results.csv").read_text() == (
        folder / "undisturbed/results.csv"
    ).read_text()


def test_cells_that_fail_are_told_by_the_exit_code_and_the_table(folder):
    arguments = [
        "models=[run,distilbert]",
        "tasks=[throughput]",
        "measure.lengths=[16,1000]",
        "output=failing",
    ]
    output = run_command("evaluate", *arguments, "measure.throughput_tokens=32", cwd=folder, code=1)
    assert "some cells failed; the same command tries them again" in output
    page = (folder / "failing/results.md").read_text()
    assert "distilbert on throughput@1000: the model takes texts of 512 tokens at most" in page
    results = json.loads((folder / "failing/results.json").read_text())
    assert [row["value"] is None for row in results["rows"]] == [False, False, True, True]


def test_a_plan_computes_nothing(folder):
    output = run_command(*build_arguments("planned", "plan=true"), cwd=folder)
    assert [line.split()[:3] for line in output.splitlines() if line.startswith("in all")] == [
        ["in", "all", str(NUM_CELLS)]
    ]
    assert count_cells(folder / "planned") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models=[absent]"], r"models=[absent] is neither a folder nor a model on the Hub"),
        (["tasks=[mrpc]"], r"no file train-00000-of-00001.parquet"),
        (["tasks=[ssst2]"], r"there is no task ssst2: did you mean sst2?"),
        (["preset=quik"], r"quik"),
        (
            ["grid.start_from_mnli=[rte]"],
            r"rte start from the best cell of mnli: add mnli to tasks",
        ),
    ],
)
def test_wrong_input_ends_before_anything_is_computed(folder, arguments, message):
    output = run_command(
        *build_arguments("refused"), *arguments, cwd=folder, code=2, HF_HUB_OFFLINE="1"
    )
    assert message in output
    assert not (folder / "refused").exists()


def test_all_models_that_cannot_be_used_are_told_at_once(folder):
    models = "models=[run,distilbart,org/absent]"
    output = run_command(
        *build_arguments("refused"), models, cwd=folder, code=2, HF_HUB_OFFLINE="1"
    )
    assert "2 problems were found" in output
    assert "models=[distilbart] is neither a folder (did you mean distilbert?) nor" in output
    assert "models=[org/absent]" in output
    assert not (folder / "refused").exists()


def test_results_are_written_neither_into_a_run_nor_over_others_without_a_word(folder, undisturbed):
    output = run_command(*build_arguments("run"), cwd=folder, code=2)
    assert "run holds a training run: write output=..." in output
    (folder / "exported").mkdir()
    (folder / "exported/.neobert_train.json").touch()
    output = run_command(*build_arguments("exported"), cwd=folder, code=2)
    assert "exported holds an exported model: write output=..." in output
    assert "they replace those of a call" not in undisturbed
    again = run_command(*build_arguments("undisturbed", "grid.learning_rates=[1e-3]"), cwd=folder)
    assert "they replace those of a call with other models, tasks or settings" in again
    restored = run_command(*build_arguments("undisturbed"), cwd=folder)
    assert "they replace" in restored
    assert (folder / "undisturbed/results.md").read_text().strip() in undisturbed


def test_so_few_steps_that_nothing_is_learned_are_told(folder, undisturbed):
    for output in (undisturbed, run_command(*build_arguments("planned", "plan=true"), cwd=folder)):
        assert (
            "sst2 is fine-tuned for 1 steps on 32 examples, which teaches little: write "
            "grid.epochs=[100]" in output
        )
    assert (
        "sst2, rte, stsb: fine-tuned; 32 training and 20 evaluation examples; steps 1; "
        in (folder / "undisturbed/results.md").read_text()
    )
    assert "teaches little" not in run_command(
        *build_arguments("planned", "plan=true", "grid.max_steps=1"), cwd=folder
    )
    own = run_command(
        *build_arguments("planned", "plan=true", "grid.task_epochs={sst2:[2]}"), cwd=folder
    )
    assert "sst2 is fine-tuned for 2 steps" in own
    assert "write 'grid.task_epochs={sst2:[100]}'" in own
    assert "Traceback" not in output


def test_tasks_can_start_from_the_best_cell_of_mnli(folder):
    write_glue(folder / "mnli", num_train=24, num_evaluation=10, tasks=("mnli", "rte"))
    arguments = [
        "evaluate", "models=[distilbert]", "tasks=[rte,mnli]", "data_dir=mnli", "output=started",
        "grid.seeds=[0]",
        "grid.learning_rates=[1e-3,3e-3]", "grid.max_length=16", "grid.start_from_mnli=[rte]",
    ]  # fmt: skip
    run_command(*arguments, cwd=folder)
    (started,) = (folder / "started/starts").iterdir()
    best = max(
        (
            json.loads(path.read_text())["content"]
            for path in (folder / "started/cells/mnli").iterdir()
        ),
        key=lambda content: content["measurement"]["values"]["score"],
    )
    for path in (folder / "started/cells/rte").iterdir():
        start = json.loads(path.read_text())["content"]["cell"]["settings"]["start"]
        assert start.startswith(started.name)
    assert best["measurement"]["values"]["score"] > 0


def test_every_encoder_is_probed(folder, tokenizer):
    names = [
        name for name in ("bert", "roberta", "modernbert", "nomic_bert") if name in ARCHITECTURES
    ]
    for name in names:
        write_folder(folder / name, name, tokenizer)
    write_glue(folder / "all", num_train=24, num_evaluation=12)
    models = f"models=[run,distilbert,{','.join(names)}]"
    run_command(
        "evaluate", models, "tasks=[sst2,stsb,mnli]", "preset=probe", "data_dir=all", "output=probed",
        "grid.max_length=16", "grid.seeds=[0]", cwd=folder,
    )  # fmt: skip
    results = json.loads((folder / "probed/results.json").read_text())
    assert len(results["models"]) == 2 + len(names)
    assert results["tasks"] == ["sst2", "stsb", "mnli", "mean"]
    assert all(row["value"] is not None for row in results["rows"]), results["rows"]


@pytest.mark.parametrize("preset", ["probe", "quick", "paper", "modernbert"])
def test_every_preset_does_every_task_of_glue(folder, preset):
    write_glue(folder / "all", num_train=24, num_evaluation=12)
    reduced = [
        "grid.learning_rates=[1e-4]", "grid.batch_sizes=[8]", "grid.weight_decays=[0.01]", "grid.epochs=[1]",
        "grid.task_epochs={}", "grid.max_steps=2", "grid.seeds=[0]",
    ]  # fmt: skip
    run_command(
        "evaluate", "models=[distilbert]", "tasks=[glue]", f"preset={preset}", *reduced, "data_dir=all",
        f"output={preset}", cwd=folder,
    )  # fmt: skip
    results = json.loads((folder / preset / "results.json").read_text())
    assert all(row["value"] is not None for row in results["rows"]), results["rows"]
    assert results["tasks"] == [*GLUE, "mean"]
    assert (folder / preset / "starts").exists() == (preset in ("paper", "modernbert"))


def test_an_export_shows_what_its_checkpoint_was_worth(folder, undisturbed, tmp_path):
    arguments = ["export", "run_dir=run", f"output={tmp_path / 'out'}"]
    run_command(*arguments, "evaluations=[undisturbed]", cwd=folder)
    results = json.loads((folder / "undisturbed/results.json").read_text())
    row = next(
        row for row in results["rows"] if row["model"] != "distilbert" and row["task"] == "rte"
    )
    card = (tmp_path / "out/README.md").read_text()
    assert f"| rte | {100 * row['value']:.1f} ± " in card
    assert "- Compared with distilbert." in card
    entries = yaml.safe_load((tmp_path / "out/.eval_results/glue.yaml").read_text())
    assert [entry["dataset"]["task_id"] for entry in entries] == ["sst2", "stsb", "rte"]
    assert entries[2]["value"] == round(100 * row["value"], 2)
    (folder / "other").mkdir()
    other = {**results, "models": {"distilbert": results["models"]["distilbert"]}}
    (folder / "other/results.json").write_text(json.dumps(other))
    output = run_command(*arguments, "evaluations=[other]", cwd=folder, code=2)
    assert "evaluations=[other] has no results of these weights" in output


def test_without_the_extra_the_other_forms_work_and_models_says_what_to_install(folder):
    """Packages are as if they were not installed."""
    program = (
        "import sys\n"
        "for name in ('sentence_transformers', 'mteb', 'accelerate'): sys.modules[name] = None\n"
        "from importlib.util import find_spec\n"
        "import importlib.util\n"
        "importlib.util.find_spec = lambda name: None if name in sys.modules and "
        "sys.modules[name] is None else find_spec(name)\n"
        "from neobert_train.__main__ import run_program\n"
        "run_program()\n"
    )

    def run(*arguments):
        return subprocess.run(
            [find_python(), "-c", program, *arguments], cwd=folder, capture_output=True, text=True
        )

    done = run("evaluate", "run_dir=run")
    assert done.returncode == 0, done.stderr
    done = run(*build_arguments("missing"))
    assert done.returncode == 2
    assert "(accelerate, sentence_transformers): `make install` in the repository" in done.stderr
