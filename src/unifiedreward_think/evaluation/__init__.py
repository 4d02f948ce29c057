"""Looking at judgments: judge a file of records (`__main__`), score again (`rescore`), table and page (`report`)."""
