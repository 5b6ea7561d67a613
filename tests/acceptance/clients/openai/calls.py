"""The openai SDK for embeddings."""

from __future__ import annotations

import openai

from acceptance import BASE_URL, DOCUMENTS, KEY, QUERY, answers


def dot(left: list[float], right: list[float]) -> float:
    """Inner product."""
    return sum(a * b for a, b in zip(left, right, strict=True))


with answers("embeddings.create") as answer:
    client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY)
    query = client.embeddings.create(model="resrank", input=QUERY, extra_body={"input_type": "query"}).data[0].embedding
    passages = client.embeddings.create(model="resrank", input=DOCUMENTS)
    cosines = [dot(query, each.embedding) for each in passages.data]
    answer.ranked(sorted(range(len(cosines)), key=lambda place: -cosines[place])[:3])
with answers("models.list") as answer:
    names = [model.id for model in openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key=KEY).models.list()]
    answer.told(", ".join(names))
