"""What costs are counted from."""

import pytest

from jobs.summary import fitting_tokens
from perpcs.config.schema import AssemblyConfig
from perpcs.evaluation.cost import Load


@pytest.mark.parametrize(
    ("items", "visits"),
    [(1, 12), (2, 12), (3, 24), (10, 60), (40, 240), (200, 240)],
)
def test_fitting_visits_as_many_items_as_its_steps_do(items, visits):
    """20 steps of 12 items, but about 6 visits of each at most."""
    assert fitting_tokens(AssemblyConfig(), Load(items, 7 * items)) == 7 * visits
