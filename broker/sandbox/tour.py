"""A dialogue that asks a bot for everything, one thing after another, and takes nothing else for an answer.

Whoever plays the bot's part does this. `[n:i]` is the dialogue's name and the place in it; it stands in all that has
words, first and alone, so that the referee sees what was sent twice or too early.

| # | the customer | the bot |
| --- | --- | --- |
| 0 | writes "Hello [n:0]" | shows typing; reply buttons `list:n` and `no:n`, quoting |
| 1 | taps the first | a list with rows `row:n:1` to `row:n:3` |
| 2 | picks the second row | an image by link; its caption holds the row's title |
| 3 | sends a picture, "Look [n:3]" | marks it as read, fetches it, uploads it, sends it back by its id, quoting |
| 4 | writes "Where [n:4]" | asks for the location |
| 5 | sends a place named "[n:5]", quoting | a text with latitude and longitude as "52.5,13.4", quoting |
| 6 | writes "Order [n:6]" | template `order_update` in en_US, its third parameter "[n:6]", first payload `track:n` |
| 7 | taps its first quick reply | reacts to that tap |
| 8 | reacts to the template | a text with the emoji and "to 6": it knows which of its messages is meant |
| 9 … 11 | writes three texts without a pause | each answered by a text that quotes it, in their order |
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from broker.sandbox.customers import Customer, Received

STEPS = 12
"""Answers of a whole tour. A pair of number and customer gets one message in 6 s, so it takes about a minute."""

MORE_S = 2.0
"""How long a customer looks at the phone after the last answer: another one would be one too many."""

ROWS = ("Roses", "Tulips", "Lilies")
EMOJI = "👍"
PICTURE_TYPE = "image/jpeg"


class Broken(Exception):
    """An answer was not as it had to be."""


class Tour:
    """One customer's way through all of it. `pause` is awaited before each step, `answered` is told of each answer."""

    def __init__(
        self,
        customer: Customer,
        name: str,
        answer_within_s: float,
        pause: Callable[[float], Awaitable[None]],
        answered: Callable[[Received], None],
    ) -> None:
        self._customer = customer
        self._name = name
        self._answer_within_s = answer_within_s
        self._pause = pause
        self._answered = answered

    async def run(self, think_s: float) -> None:
        """Go all the way. Raises `Broken` for a wrong answer, `Unanswered` for none."""
        customer = self._customer

        hello = customer.say(f"Hello {self._place(0)}")
        await self._answer("interactive", self._place(0), quoting=hello)

        await self._pause(think_s)
        customer.tap(f"list:{self._name}")
        await self._answer("interactive", self._place(1))

        await self._pause(think_s)
        customer.tap(f"row:{self._name}:2")
        shown = await self._answer("image", self._place(2))
        self._holds(ROWS[1] in shown.text, "the caption names the row that was picked")
        self._holds(bool(shown.body["image"].get("link")), "the image comes by link")

        await self._pause(think_s)
        picture = f"a picture of {self._name}".encode() * 40
        sent = customer.show(picture, PICTURE_TYPE, f"Look {self._place(3)}")
        shown = await self._answer("image", self._place(3), quoting=sent)
        self._holds(customer.medium(shown) == picture, "the picture comes back as it was")

        await self._pause(think_s)
        customer.say(f"Where {self._place(4)}")
        asked = await self._answer("interactive", self._place(4))
        kind = asked.body["interactive"]["type"]
        self._holds(kind == "location_request_message", "the location is asked for")

        await self._pause(think_s)
        place = customer.locate(52.5, 13.4, self._place(5), quoting=asked.wamid)
        told = await self._answer("text", self._place(5), quoting=place)
        self._holds("52.5,13.4" in told.text, "the location is understood")

        await self._pause(think_s)
        customer.say(f"Order {self._place(6)}")
        template = await self._answer("template", self._place(6))
        self._holds(template.choices()[0][0] == f"track:{self._name}", "the quick reply holds its payload")

        await self._pause(think_s)
        tapped = customer.tap(f"track:{self._name}")
        reaction = await self._answer("reaction", "")
        self._holds(reaction.body["reaction"]["message_id"] == tapped, "the reaction is to the tap")

        await self._pause(think_s)
        customer.react(template.wamid, EMOJI)
        told = await self._answer("text", self._place(8))
        self._holds(EMOJI in told.text, "the customer's reaction is understood")
        self._holds("to 6" in told.text, "the bot knows which of its messages the reaction is to")

        await self._pause(think_s)
        left: dict[str, int] = {}
        for i in range(9, STEPS):
            wamid = customer.say(f"Once more {self._place(i)}")
            left[wamid] = i
            await customer.wait_until_arrived(wamid, self._answer_within_s)
        while left:  # on the screen in any order; the referee judges in which they were sent
            told = await self._answer("text", "")
            self._holds(told.quoting in left, f"what is quoted was written just now, not {told.quoting}")
            self._holds(self._place(left.pop(told.quoting)) in told.text, "what is quoted is what is answered")

        await self._pause(MORE_S)
        self._holds(not customer.unread, f"no answer more than was asked for: {[one.text for one in customer.unread]}")
        customer.read()

    def _place(self, number: int) -> str:
        return f"[{self._name}:{number}]"

    async def _answer(self, kind: str, place: str, quoting: str = "") -> Received:
        """Take the next message on the screen for the answer, whatever it is."""
        received = await self._customer.wait("", self._answer_within_s)
        self._holds(received.type == kind, f"{kind} at {place or 'this place'}, not {received.type} {received.text!r}")
        self._holds(place in received.text, f"the answer at {place}, not {received.text!r}")
        self._holds(quoting in ("", received.quoting), f"the answer at {place} quotes {quoting}")
        self._answered(received)
        return received

    def _holds(self, is_so: bool, what: str) -> None:
        if not is_so:
            raise Broken(f"expected: {what}")
