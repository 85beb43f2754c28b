"""What a route, setting, metric, command or problem does is in the reference, or the build fails."""

import re
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from sekali.api import models, models_subscriptions
from sekali.api.problems import Kind
from sekali.settings import PublisherSettings, ServerSettings, environment_names

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import reference  # noqa: E402

HTTP_PAGE = (ROOT / "docs" / "reference" / "http.md").read_text()


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_pages_made_from_the_code_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text() == reference.PAGES[name](), "run: make reference"


def test_every_setting_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    for settings in (ServerSettings, PublisherSettings):
        for name in settings.model_fields:
            assert f"`{environment_names(settings, name)[0]}`" in page


def test_every_route_is_in_the_reference() -> None:
    paths = re.findall(r'"(/[a-z.]+)", self\.', (ROOT / "src/sekali/api/read.py").read_text())
    assert len(paths) >= 7
    for path in [*paths, "/publish", "/subscribe", "/openapi.json", "/docs"]:
        assert f"`{path}`" in HTTP_PAGE or f" {path}`" in HTTP_PAGE, path


def test_every_problem_and_status_is_in_the_reference() -> None:
    for kind in Kind:
        assert f"`{kind.value.slug}`" in HTTP_PAGE, kind
        assert f"| {kind.value.status} |" in HTTP_PAGE, kind


def test_every_route_of_subscriptions_is_in_the_reference() -> None:
    source = (ROOT / "src/sekali/api/subscriptions.py").read_text()
    routes = re.findall(r'\("([A-Z]+)", f?(?:"(.*?)"|one), self\.', source)
    assert len(routes) == 13
    for method, path in routes:
        whole = (path or "{one}").replace("{one}", "/subscriptions/{name}")
        assert f"`{method} {whole}`" in HTTP_PAGE, whole


@pytest.mark.parametrize(
    "model",
    [
        *(models.Event, models.Stats, models.Topic, models.Conflict, models.EventIn, *models_subscriptions.BODIES),
        *(models_subscriptions.SubscriptionOut, models_subscriptions.Counted, models_subscriptions.DeadLetter),
    ],
)
def test_every_field_is_in_the_reference(model: type[BaseModel]) -> None:
    for name in model.model_fields:
        assert f"`{name}`" in HTTP_PAGE, f"{model.__name__}.{name}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_no_machine_and_no_registry_is_named() -> None:
    names = re.compile(r"pypi\.org|pythonhosted|registry\.npmjs|debian\.org")
    for path in ROOT.rglob("*"):
        hidden = [part for part in path.relative_to(ROOT).parts[:-1] if part.startswith(".") and part != ".ci"]
        is_text = path.suffix in {".md", ".toml", ".txt", ".yml", ".py", ".sh", ""}
        if path.is_file() and is_text and not hidden and path != Path(__file__) and "data" not in path.parts:
            assert not names.search(path.read_text(errors="replace")), path


EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(3))
def test_the_examples_for_tests_run_as_they_stand(number: int) -> None:
    assert len(EXAMPLES) == 3
    exec(compile(EXAMPLES[number], f"docs/testing.md, example {number}", "exec"), {})
