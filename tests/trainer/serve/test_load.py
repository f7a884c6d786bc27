"""Many clients at once: each gets its own answer, none is lost."""

from concurrent.futures import ThreadPoolExecutor

from tests.trainer import tiny
from tests.trainer.serve.serving import ASKED, NAME, Running, data_url, encoded, question

CLIENTS, REQUESTS, PICTURES = 50, 2, 5


def test_fifty_clients_lose_nothing(server: Running) -> None:
    images = [
        {"type": "image_url", "image_url": {"url": data_url(encoded(tiny.picture(seed)))}}
        for seed in range(PICTURES)
    ]

    with server.client() as client:

        def ask(number: int) -> str:
            """Odd ones stream."""
            asked = question(f"{ASKED} {number % 7}", images[number % PICTURES])
            create = client.chat.completions.create
            if number % 2:
                chunks = create(model=NAME, messages=asked, max_tokens=10 + number % 9, stream=True)  # pyright: ignore[reportCallIssue, reportArgumentType]
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            said = create(model=NAME, messages=asked, max_tokens=10 + number % 9)  # pyright: ignore[reportCallIssue, reportArgumentType]
            return said.choices[0].message.content or ""

        def one_client(number: int) -> list[str]:
            return [ask(number * REQUESTS + i) for i in range(REQUESTS)]

        with ThreadPoolExecutor(CLIENTS) as pool:
            together = [
                said for client_ in pool.map(one_client, range(CLIENTS)) for said in client_
            ]
        sample = range(0, CLIENTS * REQUESTS, 7)
        assert [ask(number) for number in sample] == [together[number] for number in sample]
    assert len(together) == CLIENTS * REQUESTS
    assert len(set(together)) > PICTURES
