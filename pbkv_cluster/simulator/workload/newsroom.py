"""A newsroom of five agents who talk in one room: an application with real text, for a model that can write.

An agent's prompt is the house rules and its own role (system), the assignment, and what has been said since, its own turns as
the assistant's. So each of its prompts begins with the one before, and its first one shares its beginning with all workflows.
Who speaks next is decided by what was just said, as in applications whose router reads the last message.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pbkv_cluster.client.requests import Message

WORKLOAD = "newsroom"
MAX_TURNS = 10

_HOUSE = (
    "You work in the newsroom of a small weekly magazine. Five people share one room: the editor, the researcher, the "
    "writer, the critic and the proofreader. Everybody hears everything. House rules: write plain English and short "
    "sentences. Prefer verbs to nouns. Say what you know and how you know it; when you are unsure, say so. Never invent a "
    "name, a number or a quotation. Speak in one or two sentences, then stop and let the next person speak. Do not repeat "
    "what another person has said. Address the piece, not the person. A piece has a headline, one clear claim, three facts "
    "that support it, and an ending that a reader can remember. Readers are curious adults without special training, who "
    "read on a phone, on a train, in the morning."
)
_ROLES = {
    "editor": (
        "You are the editor. You decide what the piece is about and what its one claim is. You give one instruction at a "
        "time, and you end the discussion when the piece is good enough to print. You care about the reader's time: "
        "whatever does not help the reader is cut. You never write the piece yourself. When the others disagree you "
        "choose, and you say in a few words why. You like concrete examples and dislike adjectives. Say in one or two "
        "sentences what should be done next."
    ),
    "researcher": (
        "You are the researcher. You look things up and report what you found, one fact at a time, with where it comes "
        "from. You keep apart what is known, what is likely and what people merely believe. If a claim cannot be checked "
        "you say so and offer one that can. You are careful with numbers: you give the unit, the year, and how it was "
        "measured. You never argue about style. Report the one finding that matters most for the piece, in one or two "
        "sentences."
    ),
    "writer": (
        "You are the writer. You turn the assignment and the findings into sentences that people enjoy reading. You start "
        "with a scene or a surprise, you put one thought into one sentence, and you read it aloud before you show it. You "
        "take criticism well, and you change the text instead of defending it. You use only facts that the researcher has "
        "reported. Write the next one or two sentences of the piece, nothing else."
    ),
    "critic": (
        "You are the critic. You read as an impatient reader would, and you say what is unclear, missing or dull. You "
        "quote the words that you mean, and you say what would be better. You praise rarely, and only what others should "
        "do again. You check that the claim is supported by the facts, and that the ending follows from the beginning. "
        "Name the one weakness that matters most, in one or two sentences."
    ),
    "proofreader": (
        "You are the proofreader. You look for errors of spelling, grammar and punctuation, for names that are written in "
        "two ways, and for numbers that do not add up. You do not change the meaning or the style. If there is nothing to "
        "correct you say that the text is clean. You are the last person to see the piece before it is printed. Report "
        "what you have corrected, in one or two sentences."
    ),
}
_SUBJECTS = (
    "why bread smells good",
    "how bees find their way home",
    "why the sea is salty",
    "what makes a bridge strong",
    "how coffee came to Europe",
    "why leaves turn red",
    "how a lock works",
    "why we yawn",
    "how cats land on their feet",
    "what a city sounds like at night",
    "why ice floats",
    "how maps changed travel",
    "why onions make us cry",
    "how glass is made",
    "what trees do in winter",
    "why the moon looks larger near the horizon",
    "how a bicycle stays upright",
    "why old books smell",
    "how birds sleep",
    "what clouds weigh",
    "why soap cleans",
    "how a lighthouse works",
    "why tea calms us",
    "how snow is made",
)
_FINDINGS = (
    "Two university pages and one museum page agree on the main cause.",
    "A textbook chapter explains the cause in one paragraph, and an interview with an engineer tells how she noticed it.",
    "A review of forty studies says that the effect is real, but weaker than most people believe.",
)
_REQUESTS = {
    "editor": "What would readers most like to know about {subject}? Name one thing.",
    "researcher": "Tell us one fact about {subject}.",
    "writer": "Write one sentence for a magazine about {subject}.",
    "critic": "Ask one question that a curious reader would still have about {subject}.",
    "proofreader": "Write a short headline for a piece about {subject}.",
}
_DOUBTS = frozenset({"but", "however", "how", "what", "not", "can", "more", "could", "should"})


@dataclass(frozen=True, slots=True)
class Turn:
    """Something that was said in the room."""

    speaker: str  # an agent, "search" for a result of the search tool, "chair" for a request
    text: str
    only_for: str = ""  # the one agent who hears it; "": all do


def subject(number: int) -> str:
    """What the piece of a workflow is about."""
    return _SUBJECTS[number % len(_SUBJECTS)]


def assignment(number: int) -> str:
    """The assignment of a workflow."""
    length = ("eighty", "one hundred", "one hundred and twenty")[number // len(_SUBJECTS) % 3]
    return f"Assignment: a piece of about {length} words on {subject(number)}."


def messages(agent: str, task: str, turns: Sequence[Turn]) -> list[Message]:
    """An agent's prompt."""
    prompt: list[Message] = [{"role": "system", "content": f"{_HOUSE}\n\n{_ROLES[agent]}"}, {"role": "user", "content": task}]
    for turn in turns:
        if turn.only_for in ("", agent):
            own = turn.speaker == agent
            text = turn.text if own or turn.only_for else f"The {turn.speaker} says: {turn.text}"
            prompt.append({"role": "assistant" if own else "user", "content": text})
    return prompt


def next_agent(turns: Sequence[Turn]) -> str | None:
    """Who speaks next, by what was said last; None: the piece is done."""
    spoken = [turn for turn in turns if turn.speaker in _ROLES]
    if not spoken:
        return "editor"
    last = spoken[-1]
    if last.speaker == "proofreader":
        return None
    if len(spoken) >= MAX_TURNS - 1:
        return "proofreader"
    doubtful = not _DOUBTS.isdisjoint(re.findall(r"[a-z]+", last.text.lower()))
    match last.speaker:
        case "editor":
            return "researcher" if doubtful or len(spoken) == 1 else "writer"
        case "researcher":
            return "critic" if doubtful else "writer"
        case "writer":
            return "critic" if doubtful else "editor"
        case _:
            return "researcher" if doubtful else "proofreader"


def request(agent: str, number: int) -> Turn:
    """What the chair asks an agent to do."""
    return Turn("chair", _REQUESTS[agent].format(subject=subject(number)), only_for=agent)


def finding(number: int, turn: int) -> Turn:
    """What the researcher's search returns."""
    return Turn("search", _FINDINGS[(number + turn) % len(_FINDINGS)])
