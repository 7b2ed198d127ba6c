"""How large a base is, for cost accounting."""

from __future__ import annotations

from typing import Any

from torch import nn

from perpcs.evaluation.cost import ModelSize


def model_size(model: Any) -> ModelSize:
    """Of a Hugging Face causal LM, with or without banked layers. Of a mixture of experts all experts count, also
    those that a token does not visit."""
    config = model.config
    head = model.get_output_embeddings()
    linears = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelSize(
        linear=sum(m.weight.numel() for m in linears),
        head=head.weight.numel(),
        attention=config.num_hidden_layers * width,
    )
