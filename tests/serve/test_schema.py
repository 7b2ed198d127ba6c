"""The OpenAPI description against the service: made-up requests, good and bad, never break it."""

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    schemathesis.checks.not_a_server_error, status_code_conformance, content_type_conformance,
    response_schema_conformance,
]  # fmt: skip


def test_no_request_breaks_it(service):
    described = schemathesis.openapi.from_asgi("/openapi.json", service.app)
    headers = {"Authorization": f"Bearer {service.made['acme']}"}
    seen = {}
    for found in described.get_all_operations():
        operation = found.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def ask(case):
            answer = case.call(headers=headers)
            seen.setdefault(case.operation.label, []).append(answer.status_code)
            case.validate_response(answer, checks=CHECKS)

        ask()
    assert len(seen) == 15 and all(len(statuses) >= 1 for statuses in seen.values())
    assert seen["GET /v1/tasks"][0] == seen["GET /readyz"][0] == 200
