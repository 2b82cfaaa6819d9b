"""Word lists and seeded generators of names, numbers and phrases for the training text.

Owns every vocabulary the facts and stories draw from. Invented names are split by a checksum into a training part
and a held-out part, so a question of the evaluation asks about names that no training document ever contained.
"""

# ruff: noqa: SIM905  (word lists read better as one string)

import zlib
from random import Random

ONSETS = "b br c ch d dr f fl g gr h j k kr l m n p pl qu r s sh st t th tr v w y z".split()
VOWELS = "a e i o u a e i o ai ea ou".split()
CODAS = ["", "", "", "", "l", "m", "n", "nd", "r", "rk", "s", "sk", "t", "x", "ck", "ll", "rt"]
AVOID = "nig fag fuc fuk shi tit rap cun coc dic pis sex naz kik jew ass cum".split()  # beginnings of rude words
HELD_OUT_SHARE = 5  # one invented name in five never occurs in training

PEOPLE = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Nora Oscar Paul Rosa Sam Tina Victor Alice "
    "Bob Carol Daniel Eva Frank Hannah Ivan Julia Karl Laura Martin Nina Peter Ruth Simon Sarah Thomas Vera John Mary"
).split()
TOWNS = (
    "Paris London Berlin Madrid Rome Vienna Oslo Lisbon Athens Dublin Prague Warsaw Tokyo Cairo Lima Boston Chicago "
    "Geneva Munich Porto Krakow Bergen Delft Leeds Turin"
).split()
COUNTRIES = (
    "France Germany Spain Italy Austria Norway Portugal Greece Ireland Poland Japan Egypt Peru Brazil Canada India "
    "Kenya Chile Sweden Finland"
).split()
COLOURS = "red blue green yellow white black brown orange purple grey pink silver golden".split()
JOBS = (
    "a baker|a teacher|a doctor|a farmer|a painter|a pilot|a nurse|a carpenter|a writer|a singer|an engineer|a cook|"
    "a sailor|a tailor|a gardener|a lawyer|a librarian|an actor|a judge|a plumber|a programmer|a photographer|"
    "a fisherman|a clockmaker|a driver|a dentist|a miner|a postman"
).split("|")
FOODS = (
    "apples|bread|cheese|soup|rice|pancakes|honey|noodles|carrots|fish|plums|chocolate|pears|beans|cake|salad|"
    "mushrooms|strawberries|porridge|pizza|nuts|potatoes"
).split("|")
ANIMALS = (
    "a dog|a cat|a horse|a parrot|a goat|a rabbit|a turtle|a snake|a pony|a goldfish|a donkey|an owl|a hamster|a duck|"
    "a sheep|a pig|a frog|a mouse"
).split("|")
RELATIVES = "aunt uncle brother sister friend neighbour teacher boss mother father cousin doctor dog cat car".split()
MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MATERIALS = "wood stone glass iron copper paper clay silk wool leather brass gold silver plastic cotton steel".split()
HOBBIES = (
    "playing chess|swimming|singing|painting|reading|fishing|dancing|cooking|hiking|sailing|knitting|skiing|"
    "running|collecting stamps|riding horses|growing roses|playing the piano|playing the violin|playing football|"
    "watching birds|writing poems|climbing mountains|baking bread|building ships"
).split("|")
ADJECTIVES = (
    "old small large broken wooden heavy round tall quiet narrow shiny dusty strange light famous empty soft long new "
    "bright cold hidden secret warm"
).split()
THINGS = (
    "lamp clock boat bridge table box map book chair bell wheel door key violin kite cart mirror ladder basket hammer "
    "coat ring letter statue painting tower fence kettle drum piano bicycle window lantern engine radio camera robot "
    "garden bottle cup knife rope flag stone hat blanket"
).split()
PLACES = (
    "mill library harbour market castle forest school station garden museum kitchen church cellar barn tower park "
    "hospital workshop bakery bridge lake river office theatre cave hotel attic"
).split()
VERBS = [  # past, plain
    pair.split("/")
    for pair in (
        "built/build|painted/paint|found/find|sold/sell|bought/buy|lost/lose|broke/break|repaired/repair|hid/hide|"
        "drew/draw|designed/design|stole/steal|cleaned/clean|borrowed/borrow|carried/carry|opened/open|"
        "moved/move|made/make|invented/invent|discovered/discover|wanted/want|kept/keep|won/win|gave away/give away"
    ).split("|")
]
ATTRIBUTES = (
    "colour|size|price|weight|height|length|age|width|code|number|owner|capital|leader|symbol|language|currency|"
    "population|speed|limit|default value|version|password|address|target|result|score|size limit|port|status|"
    "main product|motto|birthday|nickname|favourite song|favourite colour|favourite number|shape|taste|purpose|"
    "temperature|depth|area|date|author|title|origin|rank|group size|bit width|home town|best friend|manager|captain|"
    "mayor|king|queen|president|founder|mother|father|sister|brother|neighbour|teacher|phone number|room number"
).split("|")
ACTIONS = (
    "deletes|prints|sorts|copies|checks|saves|loads|counts|renames|compresses|hides|sends|reads|merges|splits|"
    "encrypts|downloads|lists|shows|updates|converts|skips|limits|closes|measures"
).split("|")
OBJECTS = (
    "old files|the list|the log|all images|the weights|empty lines|the settings|the cache|every message|the table|"
    "the backup|the numbers|the model|the index|the names|the output|the tests|the report|the input file|the errors|"
    "the number of threads|the first column|the last page|all users|the memory"
).split("|")
EXTENSIONS = "txt json yaml cfg log csv py toml md bin".split()
PRODUCT_NOUNS = "lamp clock bicycle phone camera boat printer radio chair engine watch robot kettle drill tent".split()


def is_held_out(name: str) -> bool:
    """True when the invented `name` is reserved for the evaluation (a checksum of its letters decides)."""
    return zlib.crc32(name.lower().encode()) % HELD_OUT_SHARE == 0


def capital(text: str) -> str:
    """`text` with its first letter in upper case, unless it opens with a literal such as `load_x`, `a.txt` or `nf4`."""
    head = text.split(" ", 1)[0]
    literal = "_" in head or "." in head or any(letter.isdigit() for letter in head)
    return text if literal else text[:1].upper() + text[1:]


class Words:
    """Seeded source of names, numbers and phrases; `held_out` chooses the names that training never sees."""

    def __init__(self, rng: Random, held_out: bool = False):
        self.rng = rng
        self.held_out = held_out

    def invented(self) -> str:
        """An invented capitalised name of two or three syllables, from this source's side of the split."""
        while True:
            count = self.rng.choice((2, 2, 2, 3))
            parts = [self.rng.choice(ONSETS) + self.rng.choice(VOWELS) for _ in range(count)]
            name = "".join(parts) + self.rng.choice(CODAS)
            if len(name) <= 10 and is_held_out(name) == self.held_out and not any(part in name for part in AVOID):
                return name.capitalize()

    def _name(self, known: list[str], share_known: float) -> str:
        return self.rng.choice(known) if self.rng.random() < share_known else self.invented()

    def person(self) -> str:
        name = self._name(PEOPLE, 0.35)
        return f"{name} {self.invented()}" if self.rng.random() < 0.15 else name

    def town(self) -> str:
        return self._name(TOWNS, 0.25)

    def country(self) -> str:
        return self._name(COUNTRIES, 0.25)

    def company(self) -> str:
        return self.invented()

    def product(self) -> str:
        return f"the {self.invented()} {self.rng.choice(PRODUCT_NOUNS)}"

    def ship(self) -> str:
        return f"the {self.invented()}"

    def language(self) -> str:
        return self.invented() + self.rng.choice(("ish", "ese", "ian"))

    def currency(self) -> str:
        return f"the {self.invented().lower()}"

    def flag(self) -> str:
        return f"--{self.invented().lower()}"

    def function(self) -> str:
        verb = self.rng.choice("load save make read sort check send find build test".split())
        return f"{verb}_{self.invented().lower()}"

    def file(self) -> str:
        return f"{self.invented().lower()}.{self.rng.choice(EXTENSIONS)}"

    def code(self) -> str:
        letters = "".join(self.rng.choice("ABCDEFGHKLMNPRSTXZ") for _ in range(self.rng.choice((1, 2, 3))))
        return f"{letters}{self.rng.choice(('-', '', ''))}{self.rng.randrange(1, 10 ** self.rng.choice((1, 2, 3)))}"

    def colour(self) -> str:
        return self.rng.choice(COLOURS)

    def job(self) -> str:
        return self.rng.choice(JOBS)

    def food(self) -> str:
        return self.rng.choice(FOODS)

    def animal(self) -> str:
        return self.rng.choice(ANIMALS)

    def month(self) -> str:
        return self.rng.choice(MONTHS)

    def day(self) -> str:
        return self.rng.choice(DAYS)

    def material(self) -> str:
        return self.rng.choice(MATERIALS)

    def hobby(self) -> str:
        return self.rng.choice(HOBBIES)

    def number(self) -> str:
        digits = self.rng.choice((1, 2, 2, 3, 3, 4))
        return str(self.rng.randrange(10 ** (digits - 1) + 1, 10**digits))

    def decimal(self) -> str:
        return f"{self.rng.randrange(0, 100)}.{self.rng.randrange(1, 100)}"

    def year(self) -> str:
        return str(self.rng.randrange(1500, 2030))

    def price(self) -> str:
        number = self.number()
        return self.rng.choice((f"{number} euros", f"${number}", f"{number} dollars", f"{number} coins"))

    def measure(self) -> str:
        unit = self.rng.choice("metres kilometres kilograms litres minutes days hours bits bytes percent".split())
        return f"{self.number()} {unit}"

    def duration(self) -> str:
        return f"{self.number()} {self.rng.choice(('minutes', 'hours', 'days', 'weeks'))}"

    def distance(self) -> str:
        return f"{self.number()} {self.rng.choice(('kilometres', 'miles'))}"

    def bits(self) -> str:
        return f"{self.rng.choice((self.decimal(), self.number()))} {self.rng.choice(('bits', 'bytes'))}"

    def age(self) -> str:
        return str(self.rng.randrange(5, 100))

    def time(self) -> str:
        return f"{self.rng.randrange(1, 24)}:{self.rng.randrange(0, 12) * 5:02d}"

    def thing(self) -> str:
        """A definite thing such as "the old lamp"."""
        noun = self.rng.choice(THINGS)
        kind = self.rng.choice((ADJECTIVES, ADJECTIVES, COLOURS, None))
        return f"the {self.rng.choice(kind)} {noun}" if kind else f"the {noun}"

    def place(self) -> str:
        """A definite place such as "the old mill"."""
        noun = self.rng.choice(PLACES)
        return f"the {self.rng.choice(ADJECTIVES)} {noun}" if self.rng.random() < 0.6 else f"the {noun}"

    def action(self) -> str:
        return f"{self.rng.choice(ACTIONS)} {self.rng.choice(OBJECTS)}"

    def format(self) -> str:
        stem = self.rng.choice(("sym_int", "asym_int", "nf", "fp", "q", "int", "mx", "uf", "bf"))
        return f"{stem}{self.rng.randrange(2, 17)}"

    def attribute(self) -> str:
        return self.invented().lower() if self.rng.random() < 0.15 else self.rng.choice(ATTRIBUTES)

    def role(self) -> str:
        """Somebody or something named only by a phrase, such as "my aunt" or "the blue team"."""
        return self.rng.choice((
            f"my {self.rng.choice(RELATIVES)}",
            f"the {self.rng.choice(COLOURS)} {self.rng.choice(('team', 'house', 'car', 'room', 'group', 'train'))}",
            f"the {self.rng.choice(ADJECTIVES)} {self.rng.choice(JOBS).split(' ')[1]}",
            f"{self.rng.choice(('project', 'planet', 'river', 'model', 'server', 'team'))} {self.invented()}",
        ))  # fmt: skip

    def phrase(self) -> str:
        """Two to five common or invented words, at times in quotation marks: to be copied, not understood."""
        pool = (THINGS, PLACES, COLOURS, ADJECTIVES, FOODS, MATERIALS)
        count = self.rng.choice((2, 2, 3, 4, 5))
        chosen = [self.rng.choice(self.rng.choice(pool)) for _ in range(count)]
        if self.rng.random() < 0.3:
            chosen[self.rng.randrange(count)] = self.invented()
        text = " ".join(chosen)
        return f'"{capital(text)}"' if self.rng.random() < 0.3 else text

    def anything(self) -> str:
        """A value of any kind."""
        kind = self.rng.choice(
            "town person company colour number decimal year price measure code thing material food time language "
            "phrase phrase flag function file job place".split()
        )
        return getattr(self, kind)()
