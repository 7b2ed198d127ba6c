"""Every setting of an experiment, with its default, meaning, and the check that refuses impossible values.

One frozen dataclass per part; functions take the part or the values they need, never the root.
A `check` method yields (key, problem) pairs; the loader makes one line of them, with the full key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from perpcs.config.checks import Problems, above_zero, at_least, within


@dataclass(frozen=True)
class SyntheticConfig:
    """A made-up population whose preferences are known (docs/method.md, 'The synthetic population')."""

    structure: Literal["archetypes", "continuous", "distinct"] = "archetypes"
    """How users resemble each other. archetypes: groups of like-minded users; continuous: preferences from a few
    common factors, without groups; distinct: everybody has preferences of their own, nobody resembles anybody."""
    archetypes: int = 6
    """Groups of like-minded users."""
    factors: int = 3
    """Common factors of continuous preferences."""
    spread: float = 0.15
    """How far a user's preferences lie from what the archetype or the factors give, in units of these; 0: clones."""
    noise: float = 0.02
    """Probability that a user labels an item at random among the labels that apply."""
    base_users: int = 200
    candidates: int = 48
    targets: int = 16
    history: int = 60
    """History items per user."""
    history_least: int = 0
    """Above 0: users differ in activity, with history_least to `history` items, even on a logarithmic scale."""
    queries: int = 25
    """Questions per target user."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(
            self, 1, "archetypes", "factors", "base_users", "candidates", "targets", "history", "queries"
        )
        yield from at_least(self, 0, "spread", "history_least")
        if self.history_least > self.history:
            yield "history_least", f"must be at most population.synthetic.history ({self.history})"
        yield from within(self, 0, 1, "noise")


@dataclass(frozen=True)
class SplitConfig:
    """How the users of the files become base, candidates and targets."""

    base: float = 0.5
    """Fraction of the training file's users whose data adapts the base model; the rest are candidates."""
    targets: int = 0
    """Keep at most this many target users (most queries first); 0 keeps all."""
    max_history: int = 0
    """Keep at most this many newest history items per user; 0 keeps all."""
    min_history: int = 1
    """Users with fewer history items are left out, with a count in the log."""
    target_history: int = 0
    """Cold start: target users keep at most this many newest history items, others theirs; 0 keeps all."""
    irrelevant: float = 0.0
    """Behaviour shift: fraction of each target user's history whose items are replaced by those of another target."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from within(self, 0.01, 0.99, "base")
        yield from within(self, 0, 1, "irrelevant")
        yield from at_least(self, 0, "targets", "max_history", "target_history")
        yield from at_least(self, 1, "min_history")


@dataclass(frozen=True)
class PopulationConfig:
    """Where users come from."""

    source: Literal["synthetic", "lamp", "oppu"] = "synthetic"
    """synthetic; lamp: LaMP question and output files; oppu: the files of OPPU and Per-Pcs."""
    task: str = "LaMP-2M"
    """LaMP-1, 2M, 2N, 3, 4, 5, 6 or 7. The synthetic population has movie tags (LaMP-2M) or titles (LaMP-5)."""
    path: str = ""
    """lamp: folder with train_questions.json[.gz], train_outputs.json[.gz] and dev_…; oppu: folder with
    base.json, candidates.json and targets.json, each plain or gzip."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    split: SplitConfig = field(default_factory=SplitConfig)

    def check(self) -> Problems:
        """Impossible values."""
        if self.source != "synthetic" and not self.path:
            yield "path", f"is needed when population.source is {self.source}: the folder with the files"
        if self.source == "synthetic" and self.task not in ("LaMP-2M", "LaMP-5"):
            yield "task", "must be LaMP-2M or LaMP-5 for the synthetic population"


@dataclass(frozen=True)
class PromptConfig:
    """How an item or a query becomes tokens."""

    max_length: int = 64
    """Tokens of prompt and label together; what does not fit is cut from the prompt, never from the label."""
    max_label: int = 8
    """Tokens of a label, and the most that are generated."""
    instruction: Literal["short", "full"] = "short"
    """full: the published LaMP wording. short: only the variable part, with a few words that name it."""
    profile: bool = False
    """Every prompt, in training too, begins with the statistics profile (the PAG row's), so that what a projection
    sees, and with it the gate key, can depend on the user."""
    profile_labels: int = 3
    """How many of the user's most frequent labels the statistics profile names (PAG)."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 16, "max_length")
        yield from at_least(self, 1, "max_label", "profile_labels")
        if self.max_label > self.max_length // 2:
            yield "max_label", f"must be at most half of prompt.max_length ({self.max_length})"


@dataclass(frozen=True)
class TinyConfig:
    """The built-in base: a small Llama and its BPE tokenizer, trained on the spot on base users' text."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 1500
    steps: int = 1000
    batch: int = 32
    lr: float = 1.5e-3
    prompt_loss: float = 0.0
    """Weight of the prompt's own tokens in the loss, beside the labels' 1."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "layers", "heads", "kv_heads", "steps", "batch")
        yield from within(self, 0, 1, "prompt_loss")
        yield from at_least(self, 300, "vocab")
        if self.hidden % (2 * self.heads):
            yield "hidden", f"must be a multiple of twice base.tiny.heads ({2 * self.heads})"
        if self.heads % self.kv_heads:
            yield "kv_heads", f"must divide base.tiny.heads ({self.heads})"


@dataclass(frozen=True)
class AdaptConfig:
    """Task adaptation: one LoRA on base users' data, merged into the base (METHOD section 2, step 1)."""

    enabled: bool = True
    steps: int = 100
    batch: int = 32
    lr: float = 1e-3
    rank: int = 8
    alpha: float = 8.0
    weight_decay: float = 0.01
    clip: float = 0.3
    retrieved: float = 0.25
    """Fraction of training prompts that carry retrieved history or a profile, so that the RAG and PAG rows
    meet a base that knows them."""
    workers: int = 1
    """Processes that train it together, each with a worker's resources and its part of every batch. Changes the result
    by float noise."""
    checkpoint_s: float = 60.0
    """Seconds between two states that are kept, from which a killed adaptation goes on."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "steps", "batch", "rank", "workers")
        yield from at_least(self, 0, "weight_decay", "checkpoint_s")
        yield from within(self, 0, 1, "retrieved")
        yield from above_zero(self, "lr", "clip", "alpha")


@dataclass(frozen=True)
class BaseConfig:
    """The frozen language model that all users share."""

    model: str = "tiny"
    """tiny, a local folder in Hugging Face format, or a hub id where there is a hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the frozen weights; adapters and gates are float32 always."""
    device: str = "auto"
    """auto (CUDA when there is one), cpu, cuda, cuda:N."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)


@dataclass(frozen=True)
class LoraConfig:
    """Shape of every adapter of the experiment."""

    rank: int = 8
    alpha: float = 8.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Last path part of the linear layers to adapt; one that matches nothing is an error."""
    shared_init: bool = True
    """One random A for all users (makes averaging coherent); false: A is drawn per user, as in the papers."""
    dropout: float = 0.0
    """Probability that an input of a LoRA is dropped while adapters train (the papers: 0.05)."""
    layers: int = 0
    """Adapt only this many upper transformer layers, so that the lower ones run once per item; 0: all."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "rank")
        yield from at_least(self, 0, "layers")
        yield from within(self, 0, 0.9, "dropout")
        yield from above_zero(self, "alpha")
        if not self.targets:
            yield "targets", "must name at least one linear layer"


@dataclass(frozen=True)
class TrainConfig:
    """Training of one user's adapter; a pack trains many users in one step."""

    steps: int = 100
    batch: int = 6
    """History items per user and step."""
    lr: float = 3e-3
    """Peak learning rate. The papers use 2e-5 to 1e-4 on a 7B base."""
    warmup: int = 5
    """Steps of linear warm-up; then linear decay to zero."""
    weight_decay: float = 0.01
    clip: float = 0.3
    """Each user's gradient norm is cut to this on its own."""
    pack: int = 16
    """Users in one pack: one forward and backward for all of them."""
    stop_loss: float = 0.0
    """A user ends early once the mean of its last 10 step losses is below this (nats per token); 0: never."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "steps", "batch", "pack")
        yield from at_least(self, 0, "warmup", "weight_decay", "stop_loss")
        yield from above_zero(self, "lr", "clip")


@dataclass(frozen=True)
class KindsConfig:
    """OPPU with other kinds of PEFT (rows oppu_prompt and oppu_ia3): trained by the PEFT library, user after user."""

    steps: int = 100
    batch: int = 6
    """History items per step."""
    prompt_lr: float = 3e-2
    """Peak learning rate of prompt tuning."""
    ia3_lr: float = 3e-2
    """Peak learning rate of (IA)³."""
    virtual_tokens: int = 8
    """Prompt tuning: trained vectors in front of every prompt."""
    clip: float = 1.0

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "steps", "batch", "virtual_tokens")
        yield from above_zero(self, "prompt_lr", "ia3_lr", "clip")


@dataclass(frozen=True)
class SelectConfig:
    """Which candidates become sharers (METHOD section 2, step 2)."""

    strategy: Literal["kmeans", "active", "random"] = "kmeans"
    count: int = 24
    """Sharers (k of k-means)."""
    min_history: int = 11
    """A cluster's pick with fewer items is dropped."""
    encoder: str = "base"
    """base: mean of the base model's last hidden states; otherwise a folder with a sentence encoder."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "count")
        yield from at_least(self, 0, "min_history")


@dataclass(frozen=True)
class PoolConfig:
    """The sharers' adapters, gates and keys."""

    train: TrainConfig = field(default_factory=TrainConfig)
    gate: TrainConfig = field(default_factory=lambda: TrainConfig(steps=50, lr=1e-2, clip=1.0))
    sketch: int = 32
    """m: gradient keys have m * m numbers."""
    dtype: Literal["float32", "float16"] = "float32"
    """Stored type of the factors and gates."""
    checksums: bool = False
    """Compare pieces with their checksums whenever they are read; import, verify and erasure always look. Reading
    takes several times as long."""
    holdout: float = 0.0
    """Fraction of each sharer's history that its adapter, gates and keys never see: for `jobs.audit`."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from within(self, 0, 0.9, "holdout")
        yield from within(self, 1, 256, "sketch")


@dataclass(frozen=True)
class AssemblyConfig:
    """Defaults of every assembled method; a row of `evaluate.methods` may change them."""

    top_k: int = 3
    temperature: float = 1.0
    """softmax(score / T) of the gate key's scores (the paper's T = 1)."""
    gradient_temperature: float = 0.1
    """The same for gradient-key scores, which are cosines."""
    max_items: int = 0
    """History items used to assemble, newest; 0 uses all."""
    batch_items: int = 16
    """Items per selection of the paper's procedure (per-batch)."""
    items_per_pass: int = 256
    """History items, of several targets, that go through the model in one forward."""
    sharers: int = 0
    """Assemble from this many of the pool's sharers, drawn by the seed, nested; 0: from all."""
    sharing_ratio: float = 1.0
    """Fraction of the pool's pieces that are shared (the papers' rho), drawn by the seed, nested."""
    shortlist: int = 8
    """Re-ranked rows: whole sharers, found by gradient and history keys, whose likelihood is looked at."""
    likelihood_temperature: float = 0.1
    """Re-ranked rows: softmax(-loss / T), in nats per label token; the papers' temperature has no part in it."""
    sure_items: int = 4
    """Re-ranked rows: an assembly made from n items, fewer than this, is added with the factor sqrt(n / sure_items): few
    items say little about who is alike. 0: always whole."""
    fit_epochs: int = 6
    """Fitted rows: about so many visits of each history item at most, so that a short history makes fewer steps than
    `fit.steps`, but one; 0: no limit."""
    fit: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20, batch=12, lr=0.02, warmup=1, weight_decay=0.0, clip=1.0, pack=16
        )
    )
    """Fitted rows: training of a user's mixing weights, k numbers per projection, over pieces that stay as they are.
    Weight decay pulls to where the weights started."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "top_k", "batch_items", "items_per_pass", "shortlist")
        yield from at_least(self, 0, "max_items", "sharers", "sure_items", "fit_epochs")
        yield from above_zero(self, "temperature", "gradient_temperature", "sharing_ratio")
        yield from within(self, 0, 1, "sharing_ratio")


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared, and how the intervals are made."""

    methods: tuple[str, ...] = (
        "base", "adapted", "rag", "pag", "oppu", "peft_retrieval", "per_pcs", "per_pcs_once", "gradient",
        "gradient_global", "reranked", "reranked_fitted", "other_oppu", "other_assembly", "joint", "random_pieces",
        "uniform",
    )  # fmt: skip
    """Rows of the table, by name; `python -m jobs.evaluate --methods` lists them with their meaning."""
    max_queries: int = 0
    """Queries per target user; 0 uses all."""
    decoding: Literal["greedy", "constrained"] = "greedy"
    """greedy: free text, as in the papers, where anything but a label is wrong. constrained: the most likely of the
    task's labels (LaMP-1, 2M, 2N, 3)."""
    batch: int = 64
    """Sequences per generation batch, users mixed."""
    retrieve: int = 1
    """History items put into the prompt by the RAG row."""
    resamples: int = 2000
    """Bootstrap resamples of users for the intervals."""
    likelihood: bool = False
    """Also score the users' own answers: nats per gold token, a metric of its own for one more forward pass. It tells
    methods apart where a base is too small to write the answer. Sweeps leave it out."""
    save_text: bool = False
    """Also keep predictions and golds (users' own text) in predictions.jsonl."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 0, "max_queries")
        yield from at_least(self, 1, "batch", "retrieve")
        yield from at_least(self, 100, "resamples")
        if not self.methods:
            yield "methods", "must name at least one method"


@dataclass(frozen=True)
class RayConfig:
    """Where the work runs."""

    address: str = "local"
    """local starts a Ray of its own; auto or an address joins a cluster; a submitted job always joins. none: no Ray, all
    work in this process, as one worker: a small experiment is done before Ray's processes are up."""
    fleet: Literal["train", "actors"] = "train"
    """train: a Ray Train worker group of independent replicas; actors: plain Ray actors."""
    workers: int = 1
    """Training workers; each loads the base once."""
    retries: int = 2
    """How often a user is tried again after an error or a worker's death, before it counts as failed."""
    cpus: float = 1.0
    """CPUs per worker."""
    gpus: float = 0.0
    """GPUs per worker; a fraction puts several workers on one GPU."""
    threads: int = 0
    """torch threads per worker; 0: as many as the worker has CPUs."""
    memory: float = 0.0
    """GiB that a worker plans its packs with; 0: its share of the GPU, or of main memory by its CPUs."""

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 1, "workers")
        yield from at_least(self, 0, "gpus", "threads", "retries", "memory")
        yield from above_zero(self, "cpus")
        if self.address == "none" and self.workers > 1:
            yield "workers", "must be 1 with ray.address=none, which has no Ray to start workers"


@dataclass(frozen=True)
class ExperimentConfig:
    """The root: one file in configs/, one experiment folder."""

    experiment: str = "runs/quickstart"
    """Folder that holds everything the experiment makes."""
    seed: int = 0
    population: PopulationConfig = field(default_factory=PopulationConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    own: TrainConfig = field(default_factory=TrainConfig)
    """OPPU: the targets' own adapters."""
    own_warm: TrainConfig = field(default_factory=lambda: TrainConfig(steps=10))
    """Row oppu_warm: the targets' own adapters, trained from their assembly on instead of from zero."""
    own_kinds: KindsConfig = field(default_factory=KindsConfig)
    assembly: AssemblyConfig = field(default_factory=AssemblyConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def check(self) -> Problems:
        """Impossible values."""
        yield from at_least(self, 0, "seed")
        if not self.experiment.strip():
            yield "experiment", "must be a folder"
