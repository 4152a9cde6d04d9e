"""What a model may cost: requests and money."""

import argparse
import math
from dataclasses import dataclass


class Spent(Exception):
    """The budget allows no further request; the message says which part of it is spent."""


@dataclass(frozen=True)
class Limits:
    """The budget of one call of the command.

    Args:
        max_requests: retries count too.
        max_cost: in the currency of the prices; None sets no limit.
        input_price, output_price: for a million tokens.
    """

    max_requests: int = 1000
    max_cost: float | None = None
    input_price: float | None = None
    output_price: float | None = None

    def __post_init__(self) -> None:
        if self.max_requests < 1:
            raise ValueError(f"--max_requests is {self.max_requests}; it must be at least 1")
        for name in ("max_cost", "input_price", "output_price"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"--{name} is {value}; it must be 0 or a positive number")
        if self.max_cost is not None and None in (self.input_price, self.output_price):
            raise ValueError(
                f"--max_cost is {self.max_cost}, but without prices nobody knows what a request costs; give "
                "--input_price and --output_price, each for a million tokens"
            )


def add_budget_arguments(group: argparse._ActionsContainer) -> None:
    """The arguments of a budget, for commands that ask an endpoint."""
    group.add_argument(
        "--max_requests",
        type=int,
        help=f"most requests to send, retries included; default: {Limits.max_requests}",
    )
    group.add_argument("--max_cost", type=float, help="stop before this much money is spent; needs prices")
    group.add_argument("--input_price", type=float, help="of a million tokens")
    group.add_argument("--output_price", type=float, help="of a million tokens")


def limits_of(args: argparse.Namespace) -> Limits:
    """The budget that the arguments name.

    Raises:
        ValueError: one of them is invalid, or prices are missing.
    """
    requests = Limits.max_requests if args.max_requests is None else args.max_requests
    return Limits(requests, args.max_cost, args.input_price, args.output_price)


class Budget:
    """Counts requests, tokens and money against limits."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests, self.input_tokens, self.output_tokens = 0, 0, 0
        self.unreported, self._dearest = 0, 0.0

    @property
    def cost(self) -> float | None:
        """Money spent, as far as the endpoint tells its tokens; None without prices."""
        if None in (self.limits.input_price, self.limits.output_price):
            return None
        return self._price(self.input_tokens, self.output_tokens)

    def before_request(self) -> None:
        """Counts a request that is about to be made.

        Raises:
            Spent: it could exceed the limits; it may cost as much as the dearest so far.
            ValueError: the last reply came without token counts, but there is a limit in money.
        """
        limits = self.limits
        if limits.max_cost is not None and self.unreported:
            raise ValueError(
                "--max_cost needs token counts, and a reply came without any; use --max_requests instead"
            )
        if self.requests >= limits.max_requests:
            raise Spent(f"{self.requests} requests were made, as many as --max_requests allows")
        if limits.max_cost is not None and self.cost + self._dearest > limits.max_cost:
            raise Spent(
                f"{self.cost:.4f} is spent, and another request may exceed --max_cost {limits.max_cost:g}"
            )
        self.requests += 1

    def after_reply(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Counts the tokens that the endpoint reports."""
        if input_tokens is None or output_tokens is None:
            self.unreported += 1
            return
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        if self.cost is not None:
            self._dearest = max(self._dearest, self._price(input_tokens, output_tokens))

    def line(self) -> str:
        """For people: what was used."""
        money = "" if self.cost is None else f", {self.cost:.4f} in money"
        tokens = f"{self.input_tokens} + {self.output_tokens} tokens{money}"
        unknown = f" and {self.unreported} replies without token counts" if self.unreported else ""
        return f"{self.requests} requests, {tokens}{unknown}"

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        return (input_tokens * self.limits.input_price + output_tokens * self.limits.output_price) / 1e6
