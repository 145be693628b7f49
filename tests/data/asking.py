"""Rows of a file of prompts."""


def ask(text, **more):
    return {"prompt": text, **more}


def many(count, **more):
    return [ask(f"question {i}", **more) for i in range(count)]
