"""The demo page: judge a pair and watch the reasoning, ask again with the candidates swapped, judge a file."""
