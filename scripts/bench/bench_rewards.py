"""A reward in which the completions of a random model differ, so that GRPO has something to learn."""


def mean_token(completion_ids, **_):
    """Return the mean token number of each completion, in thousands."""
    return [sum(ids) / len(ids) / 1000 for ids in completion_ids]
