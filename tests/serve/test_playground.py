"""The playground: its files under a strict policy, and the page itself driven in a headless browser."""

import re
import shutil

import pytest

PAGES = ("/playground", "/playground/app.js", "/playground/style.css", "/playground/world.json")


@pytest.mark.parametrize("path", PAGES)
def test_the_page_is_open_and_asks_nobody_else(service, path):
    from fastapi.testclient import TestClient

    answer = TestClient(service.app).get(path)
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"https?://", answer.text), "no request goes elsewhere"


def test_the_policy_allows_its_own_files_only(client):
    policy = client.get("/playground").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';")
    assert "unsafe" not in policy


def test_made_up_people_are_none_of_the_experiments(client, experiment):
    world = client.get("/playground/world.json").json()
    assert len(world["users"]) == 3
    known = {item.get("description") for split in ("base", "candidates", "targets")
             for user in getattr(experiment.people, split) for item in user.history}  # fmt: skip
    shown = {item["description"] for user in world["users"] for item in user["history"]}
    assert shown and not shown & known


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not program or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,1700"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(browser, service, serve_http):
    """By id: the element, on a fresh page."""
    from selenium.webdriver.common.by import By

    browser.get(f"{serve_http(service.app)}/playground")
    return lambda name: browser.find_element(By.ID, name)


def until(browser, met):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: met())


def choose(element, index):
    from selenium.webdriver.support.ui import Select

    Select(element).select_by_index(index)


def connect(browser, page, token):
    page("token").send_keys(token)
    page("connect").click()
    until(browser, lambda: "connected: mini, LaMP-2M" in page("service").text)


def test_from_a_history_to_two_answers_and_forgotten(browser, page, service):
    connect(browser, page, service.made["acme"])
    choose(page("sample"), 1)
    choose(page("rule"), 3)
    page("assemble").click()
    until(browser, lambda: "assembled in" in page("assembling").text)
    assert "bytes" in page("facts").text
    until(browser, lambda: not browser.find_elements("css selector", "#map td.later"))
    layers = browser.find_elements("css selector", "#map thead tr:first-child th")
    assert [head.text for head in layers] == ["layer", "0", "1"]
    weights = [
        sum(float(square.get_attribute("title").split(": ")[1]) for square in column)
        for column in zip(*(row.find_elements("tag name", "td")
                            for row in browser.find_elements("css selector", "#map tbody tr")), strict=True)
    ]  # fmt: skip
    assert len(weights) == 8
    assert all(weight == pytest.approx(1, abs=0.05) for weight in weights), "each projection's weights"
    choose(page("question"), 1)
    page("ask").click()
    until(browser, lambda: all("done after" in page(f"{who}-time").text for who in ("base", "user")))
    assert page("base-answer").text != page("user-answer").text
    assert "This user's own answer" in page("gold").text
    page("forget").click()
    until(browser, lambda: page("assembling").text == "forgotten")
    page("ask").click()
    until(browser, lambda: page("problem").is_displayed())
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("404" in entry["message"] for entry in errors), "only the forgotten user's"


def test_fitted_weights_may_take_away(browser, page, service):
    connect(browser, page, service.made["acme"])
    choose(page("sample"), 1)
    page("assemble").click()
    until(browser, lambda: "assembled in" in page("assembling").text)
    squares = browser.find_elements("css selector", "#map td")
    weights = [float(square.get_attribute("title").split(": ")[1]) for square in squares]
    taken = ["minus" in square.get_attribute("class") for square in squares]
    assert any(taken) and all(weight <= 0 for weight, minus in zip(weights, taken, strict=True) if minus)
    assert all(minus for weight, minus in zip(weights, taken, strict=True) if weight < 0)


def test_mistakes_are_said_on_the_page(browser, page, service):
    page("token").send_keys("ppcs_wrong")
    page("connect").click()
    until(browser, lambda: page("problem").is_displayed())
    assert "token" in page("problem").text
    page("token").clear()
    connect(browser, page, service.made["acme"])
    assert not page("problem").is_displayed()
    page("history").send_keys("[{")
    page("assemble").click()
    until(browser, lambda: "history: is no JSON" in page("problem").text)


def test_text_is_never_markup(browser, page, service):
    connect(browser, page, service.made["acme"])
    browser.execute_script(
        "document.getElementById('history').value = arguments[0]",
        '[{"description": "<img src=x onerror=alert(1)>", "tag": "<b>comedy</b>"}]',
    )
    page("user").clear()
    page("user").send_keys("<script>alert(1)</script>")
    page("assemble").click()
    until(browser, lambda: page("problem").is_displayed() or "assembled" in page("assembling").text)
    assert not browser.find_elements("css selector", "main img, main script, main b")
