"""Hugging Face models read from their files: only causal ones, only whole ones, never by code that comes with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from steerkit.errors import ModelError

SHOWN = 3
"""So many names of weights are told."""
LEFTOVERS = re.compile(r"(rotary_emb\.inv_freq|masked_bias|\.attn\.bias|\.attention\.bias|position_ids)$")
"""Tables that older versions of transformers saved, and that are computed now."""
LIBRARIES = {
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "compressed-tensors": "compressed-tensors",
    "gptq": "gptqmodel",
    "awq": "gptqmodel",
    "mxfp4": "kernels",
    "hqq": "hqq",
    "quanto": "optimum-quanto",
    "aqlm": "aqlm",
    "fp8": "kernels",
}
"""Which library reads a quantised checkpoint, by the method that its configuration names."""


def read_config(source: str, local: bool = False) -> Any:
    """A model's configuration; `local` forbids the network.

    Raises:
        ModelError: it is of a kind that only code beside it knows.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=local)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(own_code(source)) from error
        raise


def own_code(source: str) -> str:
    """Why a model with code of its own is not loaded."""
    return (
        f"{Path(source).name} comes with Python code of its own, and steerkit never runs code that comes with a model; "
        "choose one of an architecture that transformers has"
    )


def read_tokenizer(source: str) -> Any:
    """A model's tokenizer, which puts in front of a text that is no chat the token that begins texts."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, add_bos_token=True, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(own_code(source)) from error
        raise


def causal_class(config: Any, title: str) -> Any:
    """The class of transformers that a configuration's weights are for.

    Raises:
        ModelError: it is no causal language model, or not one that transformers has.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    causal = set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    causal |= set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    causal |= set(getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {}).values())
    named = (getattr(config, "architectures", None) or [None])[0]
    if getattr(config, "is_encoder_decoder", False) or getattr(config.get_text_config(), "is_encoder_decoder", False):
        raise ModelError(f"{title} is an encoder–decoder ({named or config.model_type}); {_WANTED}")
    if named is None:
        name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        if name is None:
            raise ModelError(
                f"{title} is of the kind {config.model_type!r}, which has no causal language model; {_WANTED}"
            )
        return getattr(transformers, name)
    if named not in causal:
        known = hasattr(transformers, named)
        if not known and getattr(config, "auto_map", None):
            raise ModelError(own_code(title))
        what = f"a {named}, which predicts no next token" if known else f"a {named}, which transformers does not have"
        raise ModelError(f"{title} is {what}; {_WANTED}")
    return getattr(transformers, named)


_WANTED = "steerkit steers causal language models; choose one with -m"


def load_whole(source: str, title: str, config: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A Hugging Face model with every weight from its file.

    Args:
        source: a folder or a hub id
        title: what to call it
        config: its configuration
        device: where it goes; `auto` spreads it over the devices that are there
        dtype: its precision

    Raises:
        ModelError: weights are missing, or there are some that the configuration has no place for.
    """
    model_class = causal_class(config, title)
    quantised = getattr(config, "quantization_config", None)
    # Weights of another shape are refused below, by name.
    options: dict[str, Any] = {"dtype": dtype, "config": config, "output_loading_info": True}
    options["ignore_mismatched_sizes"] = True
    if device == "auto":
        options["device_map"] = "auto"
    elif quantised is not None:
        options["device_map"] = {"": device}
    try:
        model, told = model_class.from_pretrained(source, **options)
    except ImportError as error:
        raise ModelError(_missing_library(title, quantised, error)) from error
    require_whole(title, told)
    if not hasattr(model.get_input_embeddings(), "weight"):
        raise ModelError(f"{title} is a {model_class.__name__}, which does not read one row of tokens; {_WANTED}")
    if isinstance(device, torch.device) and quantised is None:
        model.to(device)
    return model.eval().requires_grad_(False)


def _missing_library(title: str, quantised: Any, error: ImportError) -> str:
    """What has to be installed for a model."""
    told = quantised if isinstance(quantised, dict) else getattr(quantised, "__dict__", {})
    method = str(getattr(told.get("quant_method"), "value", told.get("quant_method")) or "")
    reason = str(error).strip().splitlines()[0][:160]
    if method:
        library = LIBRARIES.get(method, method)
        return f"{title} is quantised by {method}, which needs a library: pip install {library} ({reason})"
    return f"{title} needs a library that is not here: {reason}"


def require_whole(title: str, told: Any) -> None:
    """See that a file held every weight of a model, and no other.

    Args:
        title: what to call the model
        told: what transformers says of the loading

    Raises:
        ModelError: weights are missing, have another shape, or belong to something else.
    """
    found = told if isinstance(told, dict) else told.__dict__
    missing, strange = sorted(found.get("missing_keys", ())), sorted(found.get("unexpected_keys", ()))
    mismatched = sorted(str(each[0] if isinstance(each, tuple) else each) for each in found.get("mismatched_keys", ()))
    strange = [name for name in strange if not LEFTOVERS.search(name)]
    if errors := found.get("error_msgs"):
        raise ModelError(f"{title} cannot be read: {str(next(iter(errors))).splitlines()[0][:160]}; fetch it again")
    for names, what in (
        (missing, "lacks weights"),
        (mismatched, "has weights of another shape than its configuration says"),
        (strange, "has weights that its configuration has no place for"),
    ):
        if names:
            rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise ModelError(
                f"{title} {what}: {', '.join(names[:SHOWN])}{rest}; without them it would talk nonsense, so fetch it "
                "again, or correct its config.json"
                if what == "lacks weights"
                else f"{title} {what}: {', '.join(names[:SHOWN])}{rest}; correct its config.json, or fetch it again"
            )


def require_numbers(model: Any, title: str) -> None:
    """See that every weight of a model is a number.

    Raises:
        ModelError: one is not; its name is told.
    """
    for name, parameter in model.named_parameters():
        # Weights that are fetched for each pass are not here, and quantised ones are of classes of their own. What they
        # give is looked at when the model is judged.
        if parameter.device.type == "meta" or type(parameter.data) is not torch.Tensor:
            continue
        if parameter.is_floating_point() and not bool(parameter.detach().sum(dtype=torch.float32).isfinite()):
            # A sum may overflow though no weight does.
            bad = int((~parameter.detach().isfinite()).sum())
            if bad:
                raise ModelError(
                    f"{title} has {bad} weights in {name} that are no numbers (NaN or infinite); fetch it again"
                )
