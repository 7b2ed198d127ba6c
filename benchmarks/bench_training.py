"""Training many users at once against a sequential PEFT loop.

    python benchmarks/bench_training.py [--threads N] [--cores N] [--quick]

Claims: a pack trains several times more users per second than PEFT one after the other, with equal losses, on one core
and on all of them. Rounds of all contestants alternate, so that whatever else the machine does hits all alike; medians
over the rounds are reported. Writes results/training.json. What training less does to accuracy: bench_layers.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import world
from training_cores import measure_cores

from perpcs.config.schema import LoraConfig, TrainConfig
from perpcs.lora.bank import AdapterBank, initial_a, initialise
from perpcs.model.adapt import unbanked
from perpcs.model.base import Base
from perpcs.population.batches import DataOrder, collate
from perpcs.records import Projection
from perpcs.train.data import UserData
from perpcs.train.host import keep_freed_memory
from perpcs.train.optimiser import learning_rate
from perpcs.train.pack import PackLosses, train_adapters

LORA, TRAIN = LoraConfig(), TrainConfig()
STEPS = {"peft": 20, "pack 1": 20, "pack 4": 10, "pack 16": 5, "pack 64": 2}
"""Timed steps per round; a pack of 64 makes 128 user-steps in its two."""


def peft_user(model: Any, user: UserData, config: TrainConfig) -> list[float]:
    """The loop a user of PEFT writes: one LoRA, the same items, torch's AdamW and clipping. Returns its losses."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    net = get_peft_model(
        model, PeftConfig(r=LORA.rank, lora_alpha=int(LORA.alpha), target_modules=list(LORA.targets))
    )
    _shared_start(net)
    weights = [w for w in net.parameters() if w.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    order, losses = DataOrder(user.user_id, len(user.examples), seed=0), []
    for step in range(config.steps):
        items = [user.examples[i] for i in order.next(config.batch)]
        batch = collate(items, pad_id=0, device=weights[0].device)
        places = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        loss = net(
            batch.input_ids, attention_mask=batch.attention_mask, position_ids=places, labels=batch.labels
        ).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.clip)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps=config.steps, warmup=config.warmup, peak=config.lr)
        optimiser.step()
        losses.append(float(loss.detach()))
    net.unload()
    return losses


def _shared_start(net: Any) -> None:
    """The A that packs start from."""
    for name, module in net.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            weight = module.lora_A["default"].weight
            p = Projection(0, "", weight.shape[1], 0, name)
            weight.data.copy_(initial_a(p, LORA.rank, seed=0))


def pack(base: Base, users: Sequence[UserData], config: TrainConfig) -> PackLosses:
    """All users in one pack, from the shared start."""
    bank = AdapterBank(base.model.projections, len(users), rank=LORA.rank, scale=LORA.alpha / LORA.rank)
    initialise(bank, [u.user_id for u in users], seed=0, shared=True)
    return train_adapters(base.model, bank, users, config, seed=0)


def timed(run: Callable[[], object]) -> float:
    """Wall seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def contest(base: Base, plain: Any, users: list[UserData], rounds: int) -> dict[str, list[float]]:
    """Wall seconds per user and step in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for number in range(rounds + 1):
        for name, steps in STEPS.items():
            config = TrainConfig(steps=steps)
            size = 1 if name == "peft" else int(name.split()[1])
            some = users[number : number + 1] if size == 1 else users[:size]
            if name == "peft":
                took = timed(lambda some=some, config=config: peft_user(plain, some[0], config))
            else:
                took = timed(lambda some=some, config=config: pack(base, some, config))
            if number:  # the first round warms up
                seconds[name].append(took / steps / size)
    return seconds


def throughput(seconds: dict[str, list[float]], users: Sequence[UserData]) -> dict[str, Any]:
    """Medians of the rounds; tokens are those of items, padding not counted."""
    tokens, made = TRAIN.batch * mean_length(users), {}
    for name, values in seconds.items():
        middle = statistics.median(values)
        made[name] = {
            "seconds_per_user_step": round(middle, 6),
            "tokens_per_second": round(tokens / middle),
            "users_per_hour": round(3600 / (middle * TRAIN.steps)),
            "times_peft": round(
                statistics.median(p / v for p, v in zip(seconds["peft"], values, strict=True)), 2
            ),
        }
    return made


def mean_length(users: Sequence[UserData]) -> float:
    """Tokens of a mean item, prompt and label."""
    return statistics.mean(len(e.prompt) + len(e.label) for u in users for e in u.examples)


def equal_losses(base: Base, plain: Any, users: list[UserData], config: TrainConfig) -> dict[str, float]:
    """The same users to the end, both ways."""
    losses = pack(base, users, config)
    ours = [losses.final(slot) for slot in range(len(users))]
    tail = max(1, config.steps // 10)
    theirs = [statistics.mean(peft_user(plain, user, config)[-tail:]) for user in users]
    return {
        "users": len(users),
        "steps": config.steps,
        "final_loss_pack": round(statistics.mean(ours), 5),
        "final_loss_peft": round(statistics.mean(theirs), 5),
        "largest_difference": round(max(abs(a - b) for a, b in zip(ours, theirs, strict=True)), 6),
    }


def floor(base: Base, users: Sequence[UserData], rate: float) -> dict[str, float]:
    """The least a step of one user costs without leaving anything out: every token once through the frozen weights and
    once back, label positions through the vocabulary, at the measured rate of one large matrix product."""
    model = base.model.model
    skipped = ("embed", "lm_head", "lora")
    inner = sum(
        w.numel() for n, w in model.named_parameters() if w.dim() == 2 and not any(s in n for s in skipped)
    )
    adapter = sum(LORA.rank * (p.d_in + p.d_out) for p in base.model.projections)
    labels = TRAIN.batch * statistics.mean(len(e.label) for u in users for e in u.examples)
    head = model.config.vocab_size * model.config.hidden_size
    flops = TRAIN.batch * mean_length(users) * (4 * inner + 6 * adapter) + labels * 4 * head
    return {
        "flops_per_user_step": round(flops),
        "frozen_weight_bytes": 4 * (inner + head),
        "optimiser_bytes_per_user_step": 4 * 7 * adapter,
        "matmul_flops_per_second": round(rate),
        "seconds_per_user_step": round(flops / rate, 6),
    }


def measure(*, quick: bool, cores: int) -> dict[str, Any]:
    """Everything that results/training.json holds."""
    keep_freed_memory()  # for PEFT's loop too
    people = world.population()
    base, plain = world.tiny_base(people), unbanked(world.tiny_base(people).model)
    users = world.training_data(base, people.candidates)
    sizes = {
        "users": len(users),
        "items_per_user": 60,
        "batch": TRAIN.batch,
        "tokens_per_item": round(mean_length(users), 2),
    }
    sizes |= {
        "rank": LORA.rank,
        "layers": 4,
        "hidden": 128,
        "parameters": sum(p.numel() for p in plain.parameters()),
    }
    return {
        "sizes": sizes,
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "throughput": throughput(contest(base, plain, users, 1 if quick else 7), users),
        "all_cores": measure_cores(cores, rounds=1 if quick else 7),
        "floor": floor(base, users, world.matmul_rate()),
        "equal_loss": equal_losses(
            base, plain, users[: 2 if quick else 16], TrainConfig(steps=5) if quick else TRAIN
        ),
        "cuda": "not measured: no GPU on this machine",
    }


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="of everything but the part on all cores")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="of that part")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, steps and users; writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = measure(quick=args.quick, cores=args.cores)
    for name, row in result["throughput"].items():
        rates = f"{row['tokens_per_second']:7,} tokens/s {row['users_per_hour']:7,} users/h"
        print(f"{name:8} {rates}  {row['times_peft']:5.2f} x PEFT")
    for name, row in result["all_cores"]["rows"].items():
        ratios = (
            f"{row['times_peft_loop']:5.2f} x the loop {row['times_peft_processes']:5.2f} x its processes"
        )
        print(f"{name:40} {row['users_per_hour']:7,} users/h  {ratios}")
    print(result["equal_loss"])
    if not args.quick:
        world.write("training", result)


if __name__ == "__main__":
    main()
