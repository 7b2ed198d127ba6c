"""Packs of users against a sequential PEFT loop on a GPU, at a Llama-2-7B shape with random weights.

    python benchmarks/bench_gpu.py [--packs 1,4,16] [--small]

Claims to be tested: at rank 8 on q, k, v and o, 6 x 512 tokens a step and user, packs make at least 1.5 x PEFT's tokens
per second and 45 % of the card's bf16 peak. The peak counted against is that of one large matrix product, measured in the
same run. FLOPs are those that the step needs: the frozen weights once forward and once back, for every token; nothing
for the vocabulary but at label positions; attention and adapters counted. --small is a shape that a CPU can try; only a
run on a GPU writes results/gpu.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import world
from bench_training import LORA, peft_user
from transformers import LlamaConfig, LlamaForCausalLM

from perpcs.config.schema import TrainConfig
from perpcs.lora.inject import BankedModel
from perpcs.model.adapt import unbanked
from perpcs.population.prompts import Encoded
from perpcs.records import SharerAdapter
from perpcs.train.data import UserData
from perpcs.train.fitting import PackFitter, device_memory, model_planner
from perpcs.train.pack import Passes
from perpcs.train.sharers import train_own

TRAIN = TrainConfig(steps=4, warmup=0)
SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "vocab_size": 32000}  # fmt: skip
SMALL = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 512}  # fmt: skip


def random_users(count: int, *, length: int, label: int, vocab: int) -> list[UserData]:
    """Histories of random tokens, all of one length: nothing is gained by bucketing them."""
    draw = torch.Generator().manual_seed(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocab, (n,), generator=draw).tolist())

    return [
        UserData(f"u{i}", tuple(Encoded(tokens(length - label), tokens(label)) for _ in range(12)))
        for i in range(count)
    ]


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall seconds, with everything on the device finished."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(model: Any) -> float:
    """FLOP/s of one large square matrix product in the model's type: the rate that the share of the peak is taken of."""
    size = 8192 if model.device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=model.device, dtype=model.dtype) for _ in range(2))
    best = min(seconds(lambda: [a @ b for _ in range(10)], model.device) / 10 for _ in range(5))
    return 2 * size**3 / best


def token_flops(model: Any, *, length: int, label: int) -> float:
    """What a step needs per token; see the head of this file."""
    config = model.config
    linears = [(n, w) for n, w in model.named_parameters() if w.dim() == 2 and ".layers." in n]
    adapters = sum(LORA.rank * sum(w.shape) for n, w in linears if n.split(".")[-2] in LORA.targets)
    # Causal attention: half of T x T, scores and values, once forward and twice (both operands) back.
    attention = 3 * 2 * 2 * config.hidden_size * config.num_hidden_layers * length / 2
    head = 4 * config.vocab_size * config.hidden_size * (label + 1) / length
    return 4 * sum(w.numel() for _, w in linears) + 6 * adapters + attention + head


def peft_round(plain: Any, user: UserData) -> float:
    """Seconds per token of the loop over PEFT."""
    return seconds(lambda: peft_user(plain, user, TRAIN), plain.device) / tokens_of([user])


def pack_round(plain: Any, users: Sequence[UserData]) -> tuple[float, str]:
    """(seconds per token of one pack, cut as memory asks for; how it was planned)."""
    model = BankedModel(plain, LORA.targets, pad_id=0)
    planner = model_planner(model, rank=LORA.rank, batch=TRAIN.batch, memory=device_memory(plain.device))

    def train(pack: Sequence[UserData], passes: Passes) -> list[SharerAdapter]:
        return train_own(model, pack, LORA, TRAIN, seed=0, passes=passes)

    try:
        took = seconds(lambda: PackFitter(planner).train(users, train), plain.device)
    finally:
        unbanked(model)
    return took / tokens_of(users), planner(users).why


def tokens_of(users: Sequence[UserData]) -> int:
    """Tokens of all steps; every item has the same length."""
    first = users[0].examples[0]
    return len(users) * TRAIN.steps * TRAIN.batch * (len(first.prompt) + len(first.label))


def measure(
    shape: dict[str, int], packs: Sequence[int], *, length: int, label: int, rounds: int
) -> dict[str, Any]:
    """Everything that results/gpu.json holds."""
    plain = random_llama(shape, length=length)
    users = random_users(max(packs), length=length, label=label, vocab=shape["vocab_size"])
    took: dict[str, list[float]] = {"peft": [], **{f"pack {size}": [] for size in packs}}
    plans: dict[str, str] = {}
    for number in range(rounds + 1):
        row = {"peft": peft_round(plain, users[0])}
        for size in packs:
            row[f"pack {size}"], plans[f"pack {size}"] = pack_round(plain, users[:size])
        for name, value in row.items() if number else ():  # the first round warms up
            took[name].append(value)
    rate, flops = peak(plain), token_flops(plain, length=length, label=label)
    return {
        "shape": {**shape, "dtype": str(plain.dtype), "length": length, "label": label, "batch": TRAIN.batch},
        "matmul_flops_per_second": round(rate),
        "plans": plans,
        "rows": {
            name: {
                "tokens_per_second": round(1 / statistics.median(values)),
                "times_peft": round(
                    statistics.median(p / v for p, v in zip(took["peft"], values, strict=True)), 2
                ),
                "share_of_peak": round(flops / statistics.median(values) / rate, 3),
            }
            for name, values in took.items()
        },
    }


def random_llama(shape: dict[str, int], *, length: int) -> Any:
    """In bfloat16 on a GPU, in float32 elsewhere."""
    cuda, before = torch.cuda.is_available(), torch.get_default_dtype()
    torch.manual_seed(0)
    # Made in its type: 27 GiB of float32 for a moment would leave no room on smaller cards.
    torch.set_default_dtype(torch.bfloat16 if cuda else torch.float32)
    try:
        with torch.device("cuda" if cuda else "cpu"):
            return LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=length)).eval()
    finally:
        torch.set_default_dtype(before)


def main() -> None:
    """Run, print, and on a GPU write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packs", default="1,4,16", help="users per pack")
    parser.add_argument("--small", action="store_true", help="a shape for a CPU; writes nothing")
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        print("skipped: there is no GPU; --small tries the same on a CPU")
        return
    packs = [int(size) for size in args.packs.split(",")]
    length, label = (32, 4) if args.small else (512, 16)
    result = measure(
        SMALL if args.small else SEVEN_B, packs, length=length, label=label, rounds=1 if args.small else 3
    )
    for name, row in result["rows"].items():
        print(f"{name:8} {row['tokens_per_second']:9,} tokens/s  {row['times_peft']:5.2f} x PEFT"
              f"  {row['share_of_peak']:6.1%} of one large matrix product")  # fmt: skip
    if not args.small:
        world.write("gpu", result)


if __name__ == "__main__":
    main()
