"""Scores of single candidates: from a request to questions, one for each sample, and from judgments to the reply.

A candidate is a record of its own, known by its content: its score depends neither on its place in the request nor on
the others there. Prompts, parser and means are those of `Judge.score`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import NamedTuple

from unifiedreward_think import candidate_points
from unifiedreward_think.judging.judge import judgment
from unifiedreward_think.judging.settings import JudgingConfig
from unifiedreward_think.order import letters
from unifiedreward_think.records import Judgment, PreferenceRecord, digest
from unifiedreward_think.scores import Score
from unifiedreward_think.serving.jobs import Answer, Question
from unifiedreward_think.serving.limits import Limits, Refused
from unifiedreward_think.serving.questions import Entry, Settings, record_of, row_of, status_of
from unifiedreward_think.serving.schemas import (
    JudgedCandidate,
    Points,
    RankRequest,
    ScoredCandidate,
    ScoreReply,
    ScoreRequest,
)

ALONE = letters(1)  # the order in which a record of one candidate is shown


class Scoring(NamedTuple):
    """What is asked to score candidates.

    Attributes:
        config: how, with the samples and the temperature of the request.
        records: one for each candidate, in the order of the request.
        questions: `config.samples` for each record, one record after another.
    """

    config: JudgingConfig
    records: list[PreferenceRecord]
    questions: list[Question]


def point_config(body: ScoreRequest | RankRequest, settings: Settings) -> JudgingConfig:
    """Return how a request has its candidates scored.

    Raises:
        Refused: the server has no prompts for scores, it would be asked too often, or all samples would be the same.
    """
    if settings.points is None:
        raise Refused("this server scores no single candidates: its folder of --prompts has none for that, pointwise/")
    _check_amount(len(body.candidates), body.samples, settings.limits)
    own = settings.points.sampling
    sampling = own if body.temperature is None else replace(own, temperature=body.temperature)
    if body.samples > 1 and not sampling.temperature:
        raise Refused(f"samples: {body.samples} at temperature 0 are all the same; send a temperature above 0, or 1")
    return replace(settings.points, samples=body.samples, sampling=sampling)


def scoring(
    body: ScoreRequest | RankRequest, config: JudgingConfig, media: Sequence[Entry], candidates: Sequence[Entry]
) -> Scoring:
    """Return the questions of a request, seeded as the judge's."""
    records, questions = [], []
    for candidate in candidates:
        record = record_of(body.task, body.prompt, media, [candidate])
        row = row_of(record, ALONE, [*media, candidate], config)
        records.append(record)
        for sample in range(config.samples):
            key = digest("points", record.id, sample, *astuple(config.sampling))
            seed = digest(config.sampling.seed, record.id, ALONE, sample)
            numbered = {**row, "sample": sample} if sample else row
            questions.append(Question(key=key, row=numbered, sampling=config.sampling, seed=seed))
    return Scoring(config, records, questions)


def points_of(asked: Scoring, answers: Sequence[Answer], *, model: str) -> list[candidate_points.Points]:
    """Return what the answers say of each candidate, which `candidate` counts from 1."""
    samples = asked.config.samples
    points = []
    for i, record in enumerate(asked.records):
        rows = [
            judgment(record, ALONE, answer, asked.config, sample=sample, model=model)
            for sample, answer in enumerate(answers[i * samples : (i + 1) * samples])
        ]
        points.append(candidate_points.Points(record_id=record.id, candidate=i + 1, samples=tuple(rows)))
    return points


def score_reply(points: Sequence[candidate_points.Points], *, reasoning: bool, model: str) -> ScoreReply:
    """Return what the client reads."""
    return ScoreReply(
        candidates=[_scored(each) for each in points],
        judgments=[_judged(each.candidate - 1, row, reasoning) for each in points for row in each.samples],
        model=model,
    )


def _check_amount(candidates: int, samples: int, limits: Limits) -> None:
    if (asked := candidates * samples) > limits.scores:
        raise Refused(f"candidates x samples: {asked}; the limit is {limits.scores}")


def _scored(points: candidate_points.Points) -> ScoredCandidate:
    status, reason = status_of(points.chosen)
    return ScoredCandidate(
        index=points.candidate - 1,
        status=status,
        reason=reason,
        points=points.share,
        score=_as_said(points.score),
        spread=points.spread,
        dimensions={dimension.name: dimension.scores[0] for dimension in points.dimensions},
        samples=len(points.samples),
        readable=len(points.scores),
    )


def _judged(index: int, row: Judgment, reasoning: bool) -> JudgedCandidate:
    score = row.verdict.score
    return JudgedCandidate(
        index=index,
        sample=row.sample,
        status=(told := status_of(row))[0],
        reason=told[1],
        points=None if score is None else score.share,
        score=_as_said(score),
        strict=row.verdict.strict,
        arithmetic_ok=row.verdict.arithmetic_ok,
        dimensions={dimension.name: dimension.scores[0] for dimension in row.verdict.dimensions},
        reasoning=row.completion if reasoning else None,
    )


def _as_said(score: Score | None) -> Points | None:
    return None if score is None else Points(**score._asdict())
