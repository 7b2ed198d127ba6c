"""Loading a causal LM with its tokenizer, checking it, and naming it by a fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from perpcs.config.schema import BaseConfig
from perpcs.errors import MismatchError, ModelError
from perpcs.lora.inject import BankedModel
from perpcs.model.tiny import tiny_shape

FINGERPRINT_FILE = "fingerprint.txt"


@dataclass(frozen=True)
class Base:
    """A frozen base with its tokenizer; `fingerprint` marks everything that is made with it."""

    model: BankedModel
    tokenizer: Any
    fingerprint: str


def pick_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ModelError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"base.device: {device!r} was asked for and no CUDA device is visible; use auto or cpu"
        )
    return chosen


def load_causal_lm(name: str, *, dtype: str) -> tuple[Any, Any]:
    """(model, tokenizer) from a local folder or a hub id. Raises ModelError in one line when it cannot be loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = _source(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        # safetensors only: a pickled checkpoint from outside could run code.
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), use_safetensors=True
        )
    except Exception as err:  # whatever four libraries say of files from outside
        raise _unusable(name, err) from err
    check_finite(model, name)
    return model, _padding(tokenizer)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of `load_causal_lm` alone. Raises ModelError in one line when it cannot be loaded."""
    from transformers import AutoTokenizer

    source = _source(name)
    try:
        return _padding(AutoTokenizer.from_pretrained(source))
    except Exception as err:  # as in load_causal_lm
        raise _unusable(name, err) from err


def _padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _source(name: str) -> str:
    """What transformers loads: a folder, or a hub id. Raises ModelError for a path without a model."""
    local = Path(name).expanduser()
    looks_local = local.exists() or name.startswith((".", "/", "~"))
    if looks_local and not (local / "config.json").is_file():
        raise ModelError(
            f"base.model: {name!r} is no model folder (no config.json in it); check the path, or use tiny"
        )
    return str(local) if looks_local else name


def _unusable(name: str, err: Exception) -> ModelError:
    reason = (str(err).strip().splitlines() or [type(err).__name__])[0]
    return ModelError(f"base.model: {name!r} could not be loaded: {reason}; check the files, or use tiny")


def check_finite(model: Any, name: str) -> None:
    """Raises ModelError naming the first weight with NaN or infinity."""
    for key, value in model.state_dict().items():
        _require_finite(value, key, name)


def check_files(name: str) -> None:
    """As `check_finite`, for the files of a local folder, one weight after the other; a hub id has none to look at."""
    from safetensors import safe_open

    for path in sorted(Path(_source(name)).glob("*.safetensors")):
        try:
            weights = safe_open(path, framework="pt")
        except Exception as err:  # safetensors' own class, or the system's
            raise ModelError(
                f"base.model: {path}: damaged or truncated ({err}); copy the file again"
            ) from err
        with weights as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                _require_finite(opened.get_tensor(key), key, str(path))


def _require_finite(value: torch.Tensor, key: str, where: str) -> None:
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise ModelError(
            f"base.model: {where}: weight {key} has values that are not finite; the file is damaged, copy it again"
        )


def skeleton(config: BaseConfig, *, max_length: int) -> Any:
    """The configured model without weights (on the meta device), to check targets and shapes with."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

    if config.model == "tiny":
        shape = tiny_shape(config.tiny, vocab=config.tiny.vocab, max_length=max_length)
        with torch.device("meta"):
            return LlamaForCausalLM(shape)
    try:
        shape = AutoConfig.from_pretrained(_source(config.model))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(shape)
    except ModelError:
        raise
    except Exception as err:  # as in load_causal_lm
        raise _unusable(config.model, err) from err


def fingerprint(model: Any, tokenizer: Any) -> str:
    """Hash of every weight (name, type, shape, bytes) and of the tokenizer: 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    return digest.hexdigest()


def save_base(model: Any, tokenizer: Any, folder: Path) -> str:
    """Write the merged base in Hugging Face format with its fingerprint; returns the fingerprint."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    mark = fingerprint(model, tokenizer)
    (folder / FINGERPRINT_FILE).write_text(mark + "\n")
    return mark


def recorded_fingerprint(folder: Path) -> str | None:
    """The fingerprint that `save_base` wrote; None where it did not."""
    path = folder / FINGERPRINT_FILE
    return path.read_text().strip() if path.is_file() else None


def load_base(folder: Path, *, dtype: str, device: str, targets: tuple[str, ...], layers: int = 0) -> Base:
    """The base of an experiment, ready for corrections in its `layers` upper layers (0: all).

    Raises MismatchError when its files changed since they were written.
    """
    model, tokenizer = load_causal_lm(str(folder), dtype=dtype)
    recorded = recorded_fingerprint(folder)
    found = fingerprint(model, tokenizer)
    if found != recorded:
        raise MismatchError(
            f"{folder}: the base model's fingerprint is {found}, {FINGERPRINT_FILE} says {recorded}; restore the files"
        )
    placed = model.to(pick_device(device))
    return Base(
        BankedModel(placed, targets, pad_id=int(tokenizer.pad_token_id), layers=layers), tokenizer, found
    )


def banked(model: Any, tokenizer: Any, *, mark: str, device: str, targets: tuple[str, ...]) -> Base:
    """Freeze a loaded model, move it, and put banked layers in."""
    placed = model.to(pick_device(device))
    return Base(BankedModel(placed, targets, pad_id=int(tokenizer.pad_token_id)), tokenizer, mark)
