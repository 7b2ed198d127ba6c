"""From OpenAI's forms to what an engine is asked."""

from __future__ import annotations

import secrets

from perpcs.generate.sampling import Sampling
from serve.api.context import Service, named_owner
from serve.api.forms import ChatForm, CompletionForm, Sampled
from serve.api.problems import Problem
from serve.identity import Identity
from serve.messages import Ask, Chat, Prompt, Text, TokenIds

DEFAULT_MAX_TOKENS = 16
"""Of completions, as OpenAI's."""
DEFAULT_TEMPERATURE = 1.0


async def completion_ask(form: CompletionForm, identity: Identity, service: Service) -> Ask:
    """Raises Problem for what is over a limit, or not allowed."""
    prompts = _prompts(form)
    logprobs = -1 if form.logprobs is None else form.logprobs
    most = form.max_tokens or min(DEFAULT_MAX_TOKENS, service.doorman.max_tokens(identity))
    return await _ask(form, prompts, (logprobs, most), identity, service)


async def chat_ask(form: ChatForm, identity: Identity, service: Service) -> Ask:
    """As `completion_ask`, for a chat."""
    if form.top_logprobs is not None and not form.logprobs:
        raise Problem(400, "top_logprobs: needs logprobs: true", param="top_logprobs", code="invalid_value")
    logprobs = (form.top_logprobs or 0) if form.logprobs else -1
    most = form.max_completion_tokens or form.max_tokens or service.doorman.max_tokens(identity)
    prompt = Chat(tuple((message.role, message.text) for message in form.messages))
    return await _ask(form, (prompt,), (logprobs, most), identity, service)


def _prompts(form: CompletionForm) -> tuple[Prompt, ...]:
    prompt = form.prompt
    if isinstance(prompt, str):
        return (Text(prompt),)
    if isinstance(prompt[0], int):
        return (TokenIds(tuple(prompt)),)
    return tuple(Text(p) if isinstance(p, str) else TokenIds(tuple(p)) for p in prompt)


async def _ask(
    form: Sampled, prompts: tuple[Prompt, ...], numbers: tuple[int, int], identity: Identity, service: Service
) -> Ask:
    logprobs, most = numbers
    card = await service.card()
    owner = named_owner(identity, form.model, form.user, card.name)
    if form.stream_options is not None and not form.stream:
        raise Problem(400, "stream_options: needs stream: true", param="stream_options", code="invalid_value")
    check_size(prompts, service)
    n = form.n or 1
    limits = service.config.limits
    if n * len(prompts) > limits.choices:
        raise Problem(
            400,
            f"n: {n * len(prompts)} answers were asked for, at most {limits.choices} are given",
            param="n",
        )
    allowed = service.doorman.max_tokens(identity)
    if most > allowed:
        raise Problem(
            400,
            f"max_tokens: {most} is more than this token's {allowed}",
            param="max_tokens",
            code="invalid_value",
        )
    if any(not stop for stop in form.stops):
        raise Problem(400, "stop: has an empty text", param="stop", code="invalid_value")
    sampling = Sampling(
        temperature=DEFAULT_TEMPERATURE if form.temperature is None else form.temperature,
        top_p=form.top_p or 1.0,
        seed=secrets.randbits(63) if form.seed is None else form.seed,
        logprobs=logprobs,
    )
    return Ask(prompts, owner, n, most, form.stops, sampling)


def check_size(prompts: tuple[Prompt, ...], service: Service) -> None:
    """Raises Problem for prompts that are too long to be looked at."""
    most = service.config.limits.prompt_characters
    size = sum(_size(prompt) for prompt in prompts)
    if size > most:
        raise Problem(
            400, f"prompt: has {size} characters, at most {most} are taken", param="prompt",
            code="context_length_exceeded",
        )  # fmt: skip


def _size(prompt: Prompt) -> int:
    if isinstance(prompt, Chat):
        return sum(len(content) for _, content in prompt.messages)
    if isinstance(prompt, TokenIds):
        return len(prompt.ids)
    return len(prompt.text) if isinstance(prompt, Text) else len(prompt.input)
