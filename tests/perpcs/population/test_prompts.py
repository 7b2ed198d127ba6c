import pickle
import re
from dataclasses import replace

import pytest

from perpcs.config.schema import PromptConfig
from perpcs.errors import ConfigError, ModelError
from perpcs.population.prompts import PLAIN, Context, Prompter
from perpcs.population.tasks import get_task
from perpcs.records import Item, Query, User

RAG = Context(retrieve=2, profile=True)


@pytest.fixture
def prompter(tokenizer):
    return Prompter(get_task("LaMP-2M"), tokenizer, PromptConfig(max_length=200, max_label=16))


def test_plain_item(prompter, tokenizer, movies):
    encoded = prompter.item(movies, 1)
    assert tokenizer.decode(encoded.prompt) == "<s>movie: a clown slips on ice\nanswer:"
    assert tokenizer.decode(encoded.label) == " comedy</s>"


def test_shown_history_has_the_nearest_item_next_to_the_question(prompter, tokenizer, movies):
    encoded = prompter.item(movies, 5, context=RAG)
    assert tokenizer.decode(encoded.prompt[1:]) == (
        "usual tags: comedy, fantasy, action\n"
        "movie: robots dream of mars answer: sci-fi\n"
        "movie: a clown slips on ice answer: comedy\n"
        "movie: a clown laughs at robots\nanswer:"
    )


def test_text_is_what_the_tokens_say(prompter, tokenizer, movies):
    pieces = prompter.text("a robot war", movies.history, context=RAG)
    assert str(pieces) == tokenizer.decode(prompter.prompt("a robot war", movies.history, context=RAG)[1:])


@pytest.mark.parametrize("index", range(6))
def test_no_item_sees_itself_or_the_future(prompter, movies, index):
    changed = movies.history[:index] + tuple(
        replace(item, fields=(("description", "future robots clown"), ("tag", "violence")))
        for item in movies.history[index + 1 :]
    )
    other = replace(movies, history=(*changed[:index], movies.history[index], *changed[index:]))
    context = Context(retrieve=6, profile=True)
    assert prompter.item(movies, index, context=context) == prompter.item(other, index, context=context)


def test_query_sees_what_was_visible_and_not_its_gold(prompter, tokenizer, movies):
    early, _ = movies.queries
    encoded = prompter.query(movies, early, context=Context(retrieve=6))
    text = tokenizer.decode(encoded.prompt)
    assert "dragon" not in text and text.count("movie:") == 5
    other = prompter.query(movies, replace(early, gold="a very different gold"), context=Context(retrieve=6))
    assert other.prompt == encoded.prompt and other.label != encoded.label


def test_serving_gives_the_same_prompt_by_value(prompter, movies):
    early, _ = movies.queries
    by_value = prompter.prompt("a robot war", movies.history[:4], context=RAG)
    assert by_value == prompter.query(movies, early, context=RAG).prompt


def test_history_is_the_known_newest_items_in_order(prompter, movies):
    assert len(movies.known) == 4
    assert prompter.history(movies) == [prompter.item(movies, i) for i in range(4)]
    assert prompter.history(movies, max_items=3) == [prompter.item(movies, i) for i in (1, 2, 3)]
    assert len(prompter.history(movies, max_items=99)) == 4


def test_empty_outputs_are_left_out_with_a_count(prompter, movies, caplog):
    empty = replace(movies.history[1], fields=(("description", "x"), ("tag", " ")))
    user = replace(movies, history=(movies.history[0], empty, *movies.history[2:]))
    assert prompter.item(user, 1) is None
    with caplog.at_level("INFO"):
        assert len(prompter.history(user)) == 3
    assert "left out 1 items" in caplog.text


@pytest.mark.parametrize("context", [PLAIN, RAG, Context(retrieve=9)])
@pytest.mark.parametrize("max_length", [20, 32, 48, 64, 100])
def test_truncation_keeps_label_and_marker(tokenizer, context, max_length):
    task = get_task("LaMP-4")
    prompter = Prompter(task, tokenizer, PromptConfig(max_length=max_length, max_label=10))
    long = "rain in the long long town " * 40
    user = User("u", tuple(Item(str(i), (("text", long), ("title", f"rain {i} " * 30))) for i in range(4)))
    marker = tuple(tokenizer.encode("\nanswer:", add_special_tokens=False))
    for encoded in prompter.history(user, context=context):
        assert len(encoded.label) == 10 and encoded.label[-1] == tokenizer.eos_token_id
        assert encoded.prompt[-len(marker) :] == marker and encoded.prompt[0] == tokenizer.bos_token_id
        assert len(encoded.prompt) + len(encoded.label) <= max_length


def test_the_input_keeps_its_head_and_context_gets_at_least_half(tokenizer, movies):
    prompter = Prompter(get_task("LaMP-2M"), tokenizer, PromptConfig(max_length=72, max_label=8))
    plain = tokenizer.decode(prompter.prompt("a detective " * 50, movies.history))
    assert plain.startswith("<s>movie: a detective a detective")
    shown = tokenizer.decode(prompter.prompt("a clown " * 50, movies.history, context=Context(retrieve=1)))
    assert "answer: comedy\nmovie: a clown a clown" in shown


def test_a_shown_item_that_does_not_fit_loses_text_not_its_answer(tokenizer):
    prompter = Prompter(get_task("LaMP-2M"), tokenizer, PromptConfig(max_length=64, max_label=8))
    item = Item("i", (("description", "clown " * 60), ("tag", "comedy")))
    text = tokenizer.decode(prompter.prompt("a clown", [item], context=Context(retrieve=1)))
    assert text.endswith("answer: comedy\nmovie: a clown\nanswer:") and text.count("clown") < 25


def test_instruction_style_and_written_profile(tokenizer, movies):
    cfg = PromptConfig(max_length=900, max_label=8, instruction="full")
    prompter = Prompter(
        get_task("LaMP-2M"), tokenizer, cfg, profile=lambda items: f"saw\n{len(items)} movies"
    )
    text = tokenizer.decode(prompter.prompt("X", movies.history, context=Context(profile=True)))
    assert text.startswith("<s>saw 6 movies\nWhich tag does this movie relate to")
    assert text.endswith("description: X\nanswer:")


def test_an_instruction_that_leaves_no_room_for_the_question_is_refused(tokenizer):
    """It would be all that the model sees, the same for every question."""
    full = PromptConfig(max_length=64, max_label=8, instruction="full")
    with pytest.raises(
        ConfigError, match=r"full instruction of LaMP-2M has .* or prompt\.instruction=short"
    ) as told:
        Prompter(get_task("LaMP-2M"), tokenizer, full)
    least = int(re.search(r"at least (\d+)", str(told.value))[1])
    Prompter(get_task("LaMP-2M"), tokenizer, replace(full, max_length=least))


def test_an_empty_history_gives_the_plain_prompt(prompter):
    assert prompter.prompt("x", (), context=RAG) == prompter.prompt("x")


def test_a_query_without_gold_has_no_label(prompter, movies):
    assert prompter.query(movies, Query("q", "x", "")).label == ()


def test_users_are_not_changed_and_prompters_travel(prompter, movies):
    before = pickle.dumps(movies)
    prompter.history(movies, context=RAG, max_items=2)
    assert pickle.dumps(movies) == before
    assert pickle.loads(pickle.dumps(prompter)).prompt("x") == prompter.prompt("x")  # noqa: S301


def test_unusable_tokenizer_and_budget(tokenizer):
    class Endless:
        bos_token_id = eos_token_id = None

    with pytest.raises(ModelError, match="no EOS token"):
        Prompter(get_task("LaMP-4"), Endless(), PromptConfig())
    with pytest.raises(ConfigError, match=r"prompt\.max_length=12"):
        Prompter(get_task("LaMP-4"), tokenizer, PromptConfig(max_length=12, max_label=10))
