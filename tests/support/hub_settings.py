"""What libraries of the Hub have read from the environment when they were imported, set again."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import huggingface_hub.constants
import huggingface_hub.hf_api
import transformers.dynamic_module_utils
import transformers.utils.hub


def use_hub(url: str, home: str, set_attribute: Callable[[Any, str, Any], Any] = setattr) -> None:
    """Let this process use the Hub at `url`, with a cache of its own in `home`."""
    replaced = {
        "ENDPOINT": url, "HF_URL_HOSTS": frozenset({"127.0.0.1"}), "HF_HUB_OFFLINE": False,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": f"{home}/hub", "HF_TOKEN_PATH": f"{home}/token", "HF_HUB_DISABLE_XET": True,
    }  # fmt: skip
    for name, value in replaced.items():
        set_attribute(huggingface_hub.constants, name, value)
    set_attribute(huggingface_hub.hf_api.api, "endpoint", url)


def follow_environment(environment: Mapping[str, str]) -> None:
    """Let this process use the Hub, the cache and the modules that another environment names."""
    read = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_MODULES_CACHE")
    if all(environment.get(name) == os.environ.get(name) for name in read):
        return
    home = environment.get("HF_HOME") or huggingface_hub.constants.HF_HOME
    use_hub(environment.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT, home)
    constants = huggingface_hub.constants
    constants.HF_HUB_OFFLINE = constants._is_true(environment.get("HF_HUB_OFFLINE"))
    constants.HF_HUB_CACHE = environment.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE
    for module in (transformers.utils.hub, transformers.dynamic_module_utils):
        module.HF_MODULES_CACHE = environment.get("HF_MODULES_CACHE") or f"{home}/modules"
