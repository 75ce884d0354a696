"""Findings name the request: Flask, Django and FastAPI through their own test clients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from recorded import line_of, place_of

import tracelens as tl
from tracelens.serving import AsgiMiddleware, WsgiMiddleware
from tracelens.serving_answers import Answers

told: list[dict[str, Any]] = []


def score(x: float) -> Any:
    return torch.log(torch.full((2,), x))  # here


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("TRACELENS_DIR", str(tmp_path))
    fresh = Answers()
    monkeypatch.setattr("tracelens.serving.answers", fresh)
    told.clear()
    yield tl.guard(score, nonfinite=told.append)
    fresh.close()


def requests_told() -> list[str]:
    return [finding["sink"]["request"] for finding in told]


def test_flask_requests_are_named(model: Any) -> None:
    flask = pytest.importorskip("flask")
    app = flask.Flask("scores")
    app.wsgi_app = WsgiMiddleware(app.wsgi_app)

    @app.get("/score/<value>")
    def answer(value: str) -> Any:
        return {"score": str(model(float(value)))}

    @app.get("/stream/<value>")
    def stream(value: str) -> Any:
        return flask.Response(str(model(float(v))) for v in (1.0, value))

    client = app.test_client()
    assert client.get("/score/1.0").status_code == 200
    assert client.get("/score/-1.0?secret=1", headers={"X-Request-ID": "7f3a"}).status_code == 200
    assert requests_told() == ["GET /score/-1.0 (7f3a)"]
    assert place_of(told[0]) == (Path(__file__).name, line_of(score))
    assert b"nan" in client.get("/stream/-1.0", headers={"X-Request-ID": "s1"}).data
    assert requests_told()[1:] == ["GET /stream/-1.0 (s1)"]
    client.get("/score/-1.0")
    assert requests_told()[2].startswith("GET /score/-1.0 (#")
    assert tl.serving.current_request() == ""


def test_django_requests_are_named(model: Any) -> None:
    pytest.importorskip("django")
    from django.conf import settings

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            MIDDLEWARE=["tracelens.serving.django_middleware"],
            ROOT_URLCONF="scores_urls",
            SECRET_KEY="only for a test",
        )
    import django
    from django.http import JsonResponse
    from django.test import AsyncClient, Client, RequestFactory
    from django.urls import path

    django.setup()

    def answer(request: Any, value: str) -> Any:
        return JsonResponse({"score": str(model(float(value)))})

    async def answer_async(request: Any, value: str) -> Any:
        return JsonResponse({"score": str(model(float(value)))})

    urls = ModuleType("scores_urls")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("score/<value>", answer),
        path("async/<value>", answer_async),
    ]
    sys.modules["scores_urls"] = urls

    assert Client().get("/score/1.0").status_code == 200
    assert Client().get("/score/-1.0", headers={"X-Request-ID": "7f3a"}).status_code == 200

    import asyncio

    asyncio.run(AsyncClient().get("/async/-1.0", headers={"X-Request-ID": "9c"}))
    middleware = tl.serving.django_middleware(lambda request: answer(request, "-1.0"))
    middleware(RequestFactory().post("/direct", headers={"X-Request-ID": "d1"}))
    assert requests_told() == [
        "GET /score/-1.0 (7f3a)",
        "GET /async/-1.0 (9c)",
        "POST /direct (d1)",
    ]


def test_fastapi_requests_are_named_when_they_overlap(model: Any) -> None:
    fastapi = pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    app = fastapi.FastAPI()
    app.add_middleware(AsgiMiddleware)

    @app.get("/thread/{value}")
    def in_a_thread(value: float) -> Any:
        return {"score": str(model(value))}

    @app.get("/loop/{value}")
    async def in_the_loop(value: float) -> Any:
        return {"score": str(model(value))}

    with testclient.TestClient(app) as client, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> int:
            kind = "thread" if number % 2 else "loop"
            value = -1.0 if number % 3 == 0 else 1.0
            headers = {"X-Request-ID": str(number)}
            return client.get(f"/{kind}/{value}", headers=headers).status_code

        assert set(pool.map(ask, range(24))) == {200}
    expected = {f"GET /{'thread' if n % 2 else 'loop'}/-1.0 ({n})" for n in range(0, 24, 3)}
    assert set(requests_told()) == expected
