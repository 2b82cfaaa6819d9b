"""What a stop string means, as slowly and plainly as possible."""


def cut(text, stops):
    """The definition, character by character: the text ends at the first character that completes a stop."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)], True
    return text, False
