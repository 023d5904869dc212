"""What huggingface_hub has read from its environment when it was imported, set again."""

from collections.abc import Callable
from typing import Any

import huggingface_hub.constants
import huggingface_hub.hf_api


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
