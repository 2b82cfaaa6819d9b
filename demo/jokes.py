"""Jokes about any animal: (setup, punchline), {k} is the animal in the plural; data only."""

JOKES = [
    ("Why do {k} never use a computer?", "They are afraid of the mouse."),
    ("What do {k} like to read?", "Short stories, because their tails are long enough."),
    ("Why did the {k} cross the road?", "To get to the other side."),
    ("What do you call {k} in the rain?", "Wet."),
    ("Why are {k} bad at cards?", "Somebody always sees their paws."),
    ("How do {k} count to ten?", "They ask a friend."),
    ("Why do {k} sleep at night?", "Because they are tired."),
    ("What time is it when {k} sit on your hat?", "Time to buy a new hat."),
]
JOKE_REQUESTS = [
    "Tell me a joke about {k}.",
    "Tell me a joke about {k}",
    "Do you know a joke about {k}?",
    "Please tell me a joke about {k}.",
    "Make a joke about {k}.",
    "Give me a joke about {k}.",
    "Give me a joke about {k} and its end.",
    "Give me the beginning of a joke about {k}, not the end.",
    "Give me a funny question about {k} with the answer.",
]
