"""Looking at judgments: judge a file of records (`__main__`), `rescore` them, `report` them on one page."""
