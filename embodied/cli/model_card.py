"""The model card of an exported planner: what the hub shows, and what a reader needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from embodied import weights
from embodied.cli.stages import in_words
from embodied.config import ModelConfig

_TEXT = """
# An embodied planner

It reads a task in plain words, looks at a robot's scene and writes a grounded plan of sub-goals;
from a short clip it judges whether a sub-goal is done.

| | |
|---|---|
| frozen | vision tower `{vision}` ({image_size} px), language model `{llm}`; neither is in this folder |
| trained, in `model.safetensors` | Embodied-former ({former.n_layers} layers, width {former.width}, {former.n_queries} queries), language mapping{head}: {n_own:,} weights |
| trained of the language model | {adapter}: {n_adapter:,} weights |
| frozen weights stored as | {stored} |
| cameras | {cameras} |
| trained on | {trained_on} |
| last step of the training | {figures} |

## Use

```bash
pip install embodied-planner
hf download <owner>/<name> --local-dir planner
embodied plan "open the drawer" --model planner
```
{peft}
## Limits

A plan is only as good as what is seen from the cameras above, at {image_size} pixels. The figures
are of training, not of held-out scenes: run `embodied evaluate-plans` and `embodied evaluate`, and
put their results here. The licences of the frozen models hold for what is made from them.
"""  # noqa: E501

_ONE = """
The adapter alone, on the language model without ours:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "planner")
```
"""
_TWO = _ONE.replace(
    'model = PeftModel.from_pretrained(base, "planner")',
    """lora = PeftModel.from_pretrained(base, "planner/lora")
model = PeftModel.from_pretrained(lora.get_base_model(), "planner/prefix")""",
)


def model_card(config: ModelConfig, notes: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """README.md with its YAML head.

    Args:
        config: the planner's.
        notes: its config.json, with what training left there.
        tensors: everything trained.
    """
    base = weights.hub_name(config.llm)
    sizes = {k: v.numel() for k, v in tensors.items()}
    n_adapter = sum(n for k, n in sizes.items() if k.startswith("adapter."))
    figures = {k: f"{v:.3g}" for k, v in notes.get("figures", {}).items()}
    text = _TEXT.format(
        vision=config.vision,
        image_size=config.image_size,
        llm=config.llm,
        former=config.former,
        head=_head_words(config),
        n_own=sum(sizes.values()) - n_adapter,
        adapter=_adapter_words(config),
        n_adapter=n_adapter,
        stored=config.dtype if config.quantize == "none" else config.quantize,
        cameras=", ".join(config.cameras),
        trained_on=in_words(notes),
        figures=", ".join(f"{k} {v}" for k, v in figures.items()) or "not recorded",
        peft={"lora": _ONE, "prefix": _ONE, "both": _TWO}.get(config.adapter.kind, "").format(
            base=base
        ),
    )
    return f"---\n{_head(config, base)}\n---\n{text}"


def _head_words(config: ModelConfig) -> str:
    """What small heads there are; a stage may train some of them or drop one."""
    there = {"verdicts": config.judged, "answers": config.answers, "places": config.placed}
    named = [name for name, known in there.items() if known]
    return f", small heads ({', '.join(named)})" if named else ""


def _adapter_words(config: ModelConfig) -> str:
    rank, length = f"LoRA of rank {config.adapter.rank}", config.adapter.prefix_length
    prefix = f"prefixes of {length} tokens (LLaMA-Adapter)"
    match config.adapter.kind:
        case "lora":
            return rank
        case "prefix":
            return prefix
        case "both":
            return f"{rank} and {prefix}"
        case "full":
            return "everything"
        case "none":
            return "nothing"


def _head(config: ModelConfig, base: str) -> str:
    """The YAML that the hub reads; a base that is no hub name is left out."""
    from huggingface_hub import ModelCardData

    is_ours = config.llm in weights.WHEELS
    on_hub = base.count("/") == 1 and not base.startswith((".", "/", "~"))
    data = ModelCardData(
        library_name="embodied-planner",
        license="apache-2.0" if is_ours else "other",
        base_model=base if on_hub else None,
        pipeline_tag="robotics",
        tags=["embodied-planner", "embodied-ai", "planning", "mujoco", config.adapter.kind],
    )
    return data.to_yaml().strip()
