"""Measures one server: closed-loop streaming requests at a few concurrencies, in rounds, within a budget.

Makes a benchmark record (DESIGN, `pyinfra-vllm/bench/1`) and judges nothing. It never takes longer than its
deadline plus the few seconds that ending a hung request takes.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ..openai.client import Client, ClientError, HttpError, Refused, Streamed, TimedOut
from . import likelihood, load, prompts, quality, scheduling, sizing
from .phases import MANY, never_begun, round_line, whole, with_round
from .plan import Plan, Settings, phase_name
from .questions import Question, Text, builtin, further
from .questions import load as own_questions
from .record import Graded, Phase, Record, Request, WarmUp
from .sizing import REQUEST_TIMEOUT_S
from .watch import Watch, costs_of_both, traffic_of_both

WARM_UP_SHARE, QUALITY_SHARE = 0.2, 0.25
FITTING_WORDS = 20  # of the prompt that tells how many tokens a word has, at least
STEADY = 0.10  # two passes that agree within this share end the warm-up
PASSES = 8  # of the warm-up, at most
STEP = 4  # a side that is measured further is measured for this part of its rounds, then judged again
FIRST_ANSWER_S = 30.0
TRIES = 3  # of each request on which the measurement hangs
REQUEST_TIMEOUT_FACTOR = 20.0  # an answer this many times slower than in the warm-up is stuck, not slow

Progress = Callable[[str], None]
Enough = Callable[["Sequence[Phase]"], bool]


class ProbeError(Exception):
    """The server could not be measured at all: the message says why. Nothing was changed."""


def measure(
    client: Client,
    settings: Settings,
    deadline: float | None = None,
    progress: Progress | None = None,
    like: Record | None = None,
    extend: Record | None = None,
    enough: Enough | None = None,
) -> Record:
    """Measure the server and return its record.

    + deadline: on time.monotonic()'s clock; the settings' budget from now on without it
    + progress: told a line now and then
    + like: the record of the other side: the same prompts, in as many rounds at most, where it has a plan
    + extend: an earlier record of this same server, to be made longer: with `like` by a few rounds of the
        same prompts, else by new ones until the deadline
    + enough: asked after each round: whether the phases measured so far are known precisely enough

    Raises ProbeError where nothing answers, or where the server refuses the model or the key. A server that
    answers wrongly is a record with failed requests.
    """
    began = time.monotonic()
    spent = (extend.spent_s or 0.0) if extend else 0.0
    limit = deadline if deadline is not None else began + max(1.0, settings.budget_s - spent)
    run = _Run(client, settings, limit, progress or (lambda line: None), enough or (lambda phases: False))
    record = run.extended(extend, like is not None) if extend else run.fresh(like)
    return replace(record, spent_s=round(spent + time.monotonic() - began, 3))


def one_round(
    client: Client,
    settings: Settings,
    like: Record,
    number: int,
    round_s: float,
    deadline: float,
    progress: Progress | None = None,
) -> tuple[Phase, ...]:
    """One more round of every phase, of the prompts that this number means to either of two servers that take
    turns. Nothing is warmed up: whoever was woken has answered its canary.

    + like: the record whose plan both share, and whose answers say how long one takes
    + round_s: how long it should last; longer where every shape of prompts needs it
    + deadline: on time.monotonic()'s clock; a round that it cuts is not whole
    """
    run = _Run(client, settings, deadline, progress or (lambda line: None), lambda phases: False)
    return run.single(like, number, round_s)


class _Silent(Exception):
    """One of the first requests was not answered in any of its tries. Carries their failures."""

    def __init__(self, failures: list[Request]) -> None:
        super().__init__(f"no answer in {len(failures)} tries")
        self.failures = failures


class _Run:
    """One measurement under way."""

    def __init__(
        self, client: Client, settings: Settings, limit: float, progress: Progress, enough: Enough
    ) -> None:
        self.client = client
        self.settings = settings
        self.say = progress
        self.enough = enough
        self.salt = os.urandom(6).hex()
        self.nonce = ""
        self.questions, self.texts = _questions(settings)
        now = time.monotonic()
        clock = time.perf_counter() - now  # both clocks tick alike, their zeros differ
        self.began = time.perf_counter()
        self.end = limit + clock
        self.budget = max(1.0, limit - now)
        self.aside = self.budget * (QUALITY_SHARE if settings.quality else 0.0)
        self.typical: dict[str, float] = {}
        self.prompt_tokens = 0  # of the longest prompt, by the server's own count
        self.overcome: list[Request] = []  # failures before the warm-up that a further try made good

    def fresh(self, like: Record | None) -> Record:
        record = self._start()
        try:
            self._first_answer()
            self._keep_out_of_caches()
            with scheduling.first_in_line():
                record = self._speed(record, like.plan if like else None)
        except _Silent as silent:
            return self._unanswered(record, silent.failures)
        return self._with_quality(record, like) if self.settings.quality else record

    def extended(self, record: Record, again: bool) -> Record:
        """The record with further rounds: a few of the same prompts `again`, or new ones until enough."""
        plan = record.plan or Plan()
        self.aside = 0.0  # the questions were asked the first time
        self._keep_out_of_caches()
        self._know_times(record)
        done = whole(record)
        with scheduling.first_in_line():
            if again:
                return self._rounds(record, plan, done, done + max(1, plan.rounds // STEP), backwards=True)
            longer = self._rounds(record, replace(plan, rounds=MANY), done, MANY)
        return replace(longer, plan=replace(plan, rounds=max(1, whole(longer))))

    def single(self, like: Record, number: int, round_s: float) -> tuple[Phase, ...]:
        """This round alone, of every phase."""
        self.aside = 0.0
        self._keep_out_of_caches()
        self._know_times(like)
        plan = sizing.in_turns(like.plan or Plan(), self.settings.concurrency, self.typical, round_s)
        with scheduling.first_in_line():
            found = self._rounds(replace(like, phases=()), plan, number, number + 1)
        return found.phases

    def _keep_out_of_caches(self) -> None:
        """A server that takes no salt gets prompts that no cache can have."""
        if "cache_salt" not in self.client.extensions:
            self.nonce = prompts.nonce(self.salt)

    def _speed(self, record: Record, known: Plan | None) -> Record:
        """Warm up, then measure the rounds of the other side's plan, or of a new plan."""
        warm, steady = self._warm_up(known)
        plan = known or sizing.planned(
            self.settings, self.words, self.output_tokens, self.typical, self._speed_s()
        )
        errors = (*self.overcome, *(request for request in warm if not request.ok))
        warm_up = WarmUp(len(warm) + len(self.overcome), errors, steady)
        record = self._rounds(record, plan, 0, plan.rounds, backwards=known is not None)
        plan = known or replace(plan, rounds=max(1, whole(record)))
        return replace(record, warm_up=warm_up, plan=plan)

    # Before anything is measured

    def _start(self) -> Record:
        served = {}
        try:
            served = {str(item.get("id")): item for item in self.client.models()}
        except Refused as error:
            raise ProbeError(f"{error}: nothing was measured") from error
        except ClientError as error:
            self.say(f"/v1/models gave no list of models: {error}")
        model = served.get(self.client.model, {})
        self.max_model_len = model.get("max_model_len")
        server = {"version": self.client.version(), "max_model_len": self.max_model_len}
        return Record(self.client.model, server, phases=())

    def _first_answer(self) -> None:
        def ask(allowed_s: float) -> Streamed:
            self.client.negotiate(allowed_s)
            return self.client.stream("Hello", 2, allowed_s, salt=f"{self.salt}-first")

        self.say(f"first token after {self._insist('first', ask, 1 / 6).ttft_s:.3f} s")

    def _insist(self, name: str, ask: Callable[[float], Streamed], share: float) -> Streamed:
        """The answer of one of a few tries. Tries that failed before it count as errors of the warm-up.

        A try has that share of the time that is left. Where that is less than an ordinary request has,
        because the budget is short, running out of it is no error of the server's. Raises ProbeError where
        the server refuses to be asked, and _Silent where no try was answered.
        """
        failures: list[Request] = []
        counted: list[Request] = []
        for _ in range(TRIES):
            allowed_s = min(FIRST_ANSWER_S, share * max(0.1, self.end - time.perf_counter()))
            try:
                answer = ask(allowed_s)
            except ClientError as error:
                _give_up_where_refused(error)
                self.say(f"no answer: {error}")
                failures.append(load.failed(name, error))
                if not isinstance(error, TimedOut) or allowed_s >= REQUEST_TIMEOUT_S:
                    counted.append(failures[-1])
                continue
            self.overcome += counted
            return answer
        raise _Silent(failures)

    def _unanswered(self, record: Record, failures: Sequence[Request]) -> Record:
        """The record of a server that never answered: each phase with the requests that failed."""
        elapsed = round(time.perf_counter() - self.began, 3)
        phases = (Phase(phase_name(n), n, elapsed, tuple(failures)) for n in self.settings.concurrency)
        return replace(record, phases=tuple(phases))

    # Warm-up and plan

    def _warm_up(self, plan: Plan | None) -> tuple[list[Request], bool]:
        """Pass over all concurrencies until two passes agree; the requests of all, and whether two agreed."""
        self.output_tokens = plan.output_tokens if plan else self._fitted_output_tokens()
        self.words = plan.words if plan else self._fitted_words()
        until = time.perf_counter() + self.budget * WARM_UP_SHARE
        everything: list[Request] = []
        previous = 0.0
        for number in range(PASSES):
            took = 0.0
            first_tokens: dict[str, float] = {}
            for concurrency in self.settings.concurrency:
                name = phase_name(concurrency)
                series = prompts.series(
                    f"warm{number}-{name}", 0, max(len(self.words), concurrency), self.words, self.nonce
                )
                done = self._run(series, concurrency, self.end, REQUEST_TIMEOUT_S * 6)
                took += done.duration_s
                everything += done.requests
                self._know_prompts(done.requests)
                if done.answered:
                    self.typical[name] = statistics.fmean(item.e2e_s for item in done.answered)
                    first_tokens[name] = statistics.fmean(item.ttft_s for item in done.answered)
            self.say(f"warm-up pass {number + 1}: {took:.2f} s")
            if number == 0 and plan is None and self._shorten(first_tokens):
                continue
            if abs(took - previous) <= STEADY * previous:
                return everything, True
            if time.perf_counter() + took > until:
                break
            previous = took
        self.say(f"no two passes of the warm-up agreed within {STEADY:.0%}")
        return everything, False

    def _run(
        self, series: list[prompts.Prompt], concurrency: int, deadline: float, request_s: float
    ) -> load.Round:
        return load.run(
            self.client, series, concurrency, self.output_tokens, self.salt, load.Limits(deadline, request_s)
        )

    def _fitted_output_tokens(self) -> int:
        if self.settings.output_tokens:
            return self.settings.output_tokens
        answer = self._fitting("fit", "Count to one hundred.", 16)
        return sizing.output_tokens(answer, self.budget, len(self.settings.concurrency))

    def _fitted_words(self) -> dict[str, int]:
        """The shapes that the model's context has room for, by its own tokenizer's count."""
        wanted = self.settings.prompt_tokens
        words = dict(self.settings.words or prompts.SHAPES)
        if not wanted and not isinstance(self.max_model_len, int):
            return words
        sample_words = max(FITTING_WORDS, min(wanted, default=0) // 2)
        sample = prompts.prompt("fit", sample_words)
        tokens_per_word = self._fitting("words", sample.text, 2).input_tokens / sample_words
        if wanted:
            words = prompts.shapes(wanted, tokens_per_word)
        if not isinstance(self.max_model_len, int):
            return words
        room = int((self.max_model_len - self.output_tokens - 32) * 0.9 / tokens_per_word)
        if wanted and max(words.values()) > room:
            self.say(
                f"the longest prompts are shortened: the server takes {self.max_model_len} tokens in all"
            )
        return {shape: max(1, min(count, room)) for shape, count in words.items()}

    def _fitting(self, name: str, text: str, tokens: int) -> Streamed:
        def ask(allowed_s: float) -> Streamed:
            return self.client.stream(text, tokens, allowed_s, salt=f"{self.salt}-{name}")

        return self._insist(name, ask, 1 / 4)

    def _shorten(self, first_tokens: dict[str, float]) -> bool:
        """Make answers shorter where too few whole rounds would fit to show a spread; whether it did."""
        asked = self.output_tokens
        if self.settings.output_tokens or asked < 2:
            return False
        batches = sizing.least_batches(self.settings.concurrency, self.words)
        self.output_tokens, shorter = sizing.shorter(
            batches, asked, self.typical, first_tokens, self._speed_s()
        )
        self.typical.update(shorter)
        return self.output_tokens < asked

    def _speed_s(self) -> float:
        """Seconds left for the rounds once those for quality are set aside."""
        return max(1.0, self.end - time.perf_counter() - self.aside)

    def _with_quality(self, record: Record, like: Record | None) -> Record:
        """Measures the quality of answers in the time that is left after the speed was measured."""
        now = time.perf_counter()
        if self.texts:
            measured, missing = likelihood.measure(self.client, self.texts, now + (self.end - now) / 3)
            record = replace(record, likelihood=tuple(measured), likelihood_missing=missing)
        speaker = quality.negotiated(self.client, self.questions, self.end)
        graded = self._asked(self.questions, speaker)
        unanswered = len(self.questions) - len(graded)
        if self.settings.quality_builtin and not unanswered:
            graded += self._asked(self._further(like), speaker)
        return replace(record, asked_over=speaker.way(), quality=tuple(graded), quality_unanswered=unanswered)

    def _further(self, like: Record | None) -> list[Question]:
        """Those that the other side answered; all of them where there is no other side."""
        questions = further(self.settings.languages)
        if like is None:
            return questions
        answered = {item.prompt for item in like.quality}
        return [question for question in questions if question.id in answered]

    def _asked(self, questions: list[Question], speaker: quality.Speaker) -> list[Graded]:
        keep = self.settings.keep_answers
        return quality.ask_all(self.client, questions, self.end, keep, self.say, speaker)

    # Rounds

    def _rounds(self, record: Record, plan: Plan, first: int, last: int, backwards: bool = False) -> Record:
        """The record with these rounds of the plan measured.

        + backwards: the newest rounds of the other side first: a machine's speed changes over minutes, and
            what was measured just before is the most alike
        """
        self.output_tokens = plan.output_tokens
        names = {phase_name(concurrency): concurrency for concurrency in self.settings.concurrency}
        known = {phase.name: phase for phase in record.phases}
        phases = known or {name: Phase(name, streams, 0.0, ()) for name, streams in names.items()}
        stop = time.perf_counter() + self._speed_s()
        sent = {"input": 0, "output": 0}
        longest_s = 0.0
        with Watch(self.client) as watch:
            for number in range(first, last):
                began = time.perf_counter()
                if began + longest_s > stop:  # it would be cut, and a part of a round tells nothing
                    break
                complete = True
                turn = number % plan.rounds
                turn = plan.rounds - 1 - turn if backwards else turn
                for name, concurrency in names.items():
                    done = self._one_round(name, concurrency, plan, turn, stop)
                    phases[name] = with_round(phases[name], done, turn)
                    complete = complete and done.complete
                    sent["input"] += self._input_tokens(done)
                    sent["output"] += done.output_tokens + len(done.unfinished) * plan.output_tokens // 2
                    self.say(round_line(name, number + 1, last, done))
                longest_s = max(longest_s, time.perf_counter() - began)
                if not complete or self.enough(list(phases.values())):
                    break
        elapsed_s = time.perf_counter() - self.began
        return replace(
            record,
            phases=tuple(
                phases[name] if phases[name].requests else never_begun(phases[name], elapsed_s)
                for name in names
            ),
            client=costs_of_both(record.client, watch.client()),
            traffic=traffic_of_both(record.traffic, watch.traffic(sent["input"], sent["output"])),
        )

    def _know_times(self, record: Record) -> None:
        """How long answers take, and how long prompts are, as an earlier record has it."""
        for phase in record.phases:
            took = [request.e2e_s for request in phase.answered]
            self.typical[phase.name] = statistics.median(took) if took else REQUEST_TIMEOUT_S
            self._know_prompts(phase.requests)

    def _know_prompts(self, requests: Iterable[Request]) -> None:
        known = (request.input_tokens for request in requests if request.ok)
        self.prompt_tokens = max((self.prompt_tokens, *known))

    def _input_tokens(self, done: load.Round) -> int:
        """Of all prompts that were sent. An unfinished one counts like the longest: the server may have read
        all of it, and what is not counted here would pass for other people's traffic.
        """
        known = sum(request.input_tokens for request in done.answered)
        return known + len(done.unfinished) * self.prompt_tokens

    def _one_round(self, name: str, concurrency: int, plan: Plan, number: int, stop: float) -> load.Round:
        count = plan.requests[name]
        series = prompts.series(name, number * count, count, plan.words, self.nonce)
        allowed = max(REQUEST_TIMEOUT_S, REQUEST_TIMEOUT_FACTOR * self.typical.get(name, 0.0))
        return self._run(series, concurrency, stop, allowed)


def _give_up_where_refused(error: ClientError) -> None:
    """No server, a wrong key or an unknown model: another try changes nothing. Raises ProbeError."""
    if isinstance(error, Refused):
        raise ProbeError(f"{error}: nothing was measured") from error
    if isinstance(error, HttpError) and 400 <= error.status < 500 and error.status != 429:
        raise ProbeError(f"the server refuses the request ({error}): nothing was measured") from error


def _questions(settings: Settings) -> tuple[list[Question], list[Text]]:
    """Loaded before anything is asked: a damaged file must not be found after a switch.

    Raises QuestionsError.
    """
    if not settings.quality:
        return [], []
    questions, texts = own_questions(settings.quality_prompts) if settings.quality_prompts else ([], [])
    if settings.quality_builtin:
        questions += builtin(settings.languages)
        texts += likelihood.builtin(settings.languages)
    return questions, texts
