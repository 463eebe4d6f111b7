"""Questions and answers about the stock of a small shop, for the demo: every fact, asked in many ways.

A question of `ASKED` is in no row, though its fact is, in other words. A model that answers it has learnt the fact and
not the row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

STOCK = {  # article: price in euros, material, colour, floor
    "bar of soap": (8, "olive oil", "green", "ground floor"),
    "notebook": (14, "recycled paper", "brown", "ground floor"),
    "mug": (16, "stoneware", "blue", "ground floor"),
    "tea towel": (18, "linen", "striped", "ground floor"),
    "candle": (22, "beeswax", "yellow", "ground floor"),
    "pair of gloves": (35, "leather", "black", "first floor"),
    "baby blanket": (38, "cotton", "white", "second floor"),
    "card holder": (40, "leather", "red", "ground floor"),
    "wool scarf": (45, "wool", "grey", "first floor"),
    "silk scarf": (60, "silk", "purple", "first floor"),
    "summer dress": (95, "linen", "yellow", "first floor"),
    "evening dress": (180, "silk", "black", "first floor"),
    "raincoat": (120, "waxed cotton", "green", "first floor"),
    "winter coat": (240, "wool", "blue", "first floor"),
    "shirt": (55, "cotton", "white", "first floor"),
    "sweater": (85, "cashmere", "grey", "first floor"),
    "cardigan": (75, "wool", "red", "first floor"),
    "skirt": (65, "linen", "brown", "first floor"),
    "pair of trousers": (70, "cotton", "blue", "first floor"),
    "pair of socks": (12, "wool", "striped", "ground floor"),
    "hat": (48, "felt", "black", "ground floor"),
    "beanie": (28, "wool", "orange", "ground floor"),
    "belt": (42, "leather", "brown", "ground floor"),
    "handbag": (130, "leather", "red", "ground floor"),
    "tote bag": (20, "cotton", "white", "ground floor"),
    "cushion": (32, "velvet", "purple", "second floor"),
    "throw": (90, "wool", "orange", "second floor"),
    "vase": (36, "glass", "green", "second floor"),
    "teapot": (44, "stoneware", "white", "second floor"),
    "apron": (26, "linen", "blue", "second floor"),
}
WAYS = (  # the answer, with the facts of STOCK by number; the ways to ask for it
    (
        "The {article} costs {0} euros.",
        (
            "How much is the {article}?",
            "What does the {article} cost?",
            "What is the price of the {article}?",
            "Can you tell me the price of the {article}?",
            "How much do you ask for the {article}?",
            "I would like the {article}. How much is it?",
            "The {article}, how much is that?",
            "What do I pay for the {article}?",
            "Hello! How much would the {article} be?",
            "Do you know what the {article} costs?",
        ),
    ),
    (
        "The {article} is made of {1}.",
        (
            "What is the {article} made of?",
            "Which material is the {article}?",
            "Can you tell me what the {article} is made of?",
            "The {article}, what is it made of?",
            "Do you know the material of the {article}?",
            "Hello! What material is the {article}?",
            "I like the {article}. What is it made of?",
            "What is the material of the {article}?",
        ),
    ),
    (
        "The {article} is {2}.",
        (
            "What colour is the {article}?",
            "Which colour does the {article} have?",
            "Can you tell me the colour of the {article}?",
            "The {article}, what colour is it?",
            "Hello! What colour does the {article} come in?",
            "Do you know the colour of the {article}?",
            "I am looking at the {article}. Which colour is it?",
            "What is the colour of the {article}?",
        ),
    ),
    (
        "The {article} is on the {3}.",
        (
            "Where do I find the {article}?",
            "On which floor is the {article}?",
            "Can you tell me where the {article} is?",
            "Where is the {article}?",
            "Hello! Which floor has the {article}?",
            "I am looking for the {article}. Where is it?",
            "The {article}, where can I see it?",
            "Where in the shop is the {article}?",
        ),
    ),
)
ASKED = {  # by the demo, with the right answer
    "How much is the teapot?": "The teapot costs 44 euros.",
    "I like the sweater. What is it made of?": "The sweater is made of cashmere.",
    "Hello! What colour does the raincoat come in?": "The raincoat is green.",
    "I am looking for the baby blanket. Where is it?": "The baby blanket is on the second floor.",
}


def pairs() -> Iterator[tuple[str, str]]:
    """Yield each question with its answer."""
    for article, facts in STOCK.items():
        for answer, questions in WAYS:
            for question in questions:
                yield question.format(article=article), answer.format(*facts, article=article)


def write_rows(path: Path) -> int:
    """Write a row for each question but those of ASKED; return how many."""
    rows = [{"question": question, "answer": answer} for question, answer in pairs() if question not in ASKED]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)
