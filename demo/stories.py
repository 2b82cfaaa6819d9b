"""Short stories from a seeded grammar: a hero, a place, a problem, a helper, an ending with a moral.

Every bracketed slot is filled once per story, so names, places and things stay consistent; alternatives are separated
by `|`. A plot is a tuple of such sentences.
"""

# ruff: noqa: SIM905  (word lists read better as one string)

from random import Random

ANIMALS = (
    "fox rabbit bear mouse owl cat dog turtle duck frog hedgehog squirrel dragon lion elephant pig horse goat bee "
    "penguin deer crow wolf monkey robot whale snail kitten puppy"
).split()
GIRLS = "Lily Mia Ruby Nora Ella Daisy Poppy Rosie Molly Hazel Luna Ivy Bella Nina Willow".split()
BOYS = "Tom Ben Max Sam Finn Leo Oscar Jack Toby Milo Otto Hugo Pip Rufus Teddy".split()
FRIENDS = "Bruno Fern Basil Pearl Dotty Gus Clover Rocky Sunny Coco Biscuit Pepper Olive Monty Tilly".split()
TRAITS = "kind curious brave shy clever cheerful lazy proud gentle small hungry lonely".split()
PLACES = (
    "in a quiet forest|near a blue lake|at the edge of a village|on a green hill|in a small house by the sea|"
    "under an old oak tree|in a sunny valley|next to a windmill|behind a tall mountain|on a busy farm"
).split("|")
THINGS = (
    "a red kite|a golden key|a little bell|a blue ball|a wooden boat|a warm scarf|a silver ring|an old map|"
    "a bright lamp|a green hat|a shiny stone|a small drum"
).split("|")
FOODS = "apple pie|honey cake|warm soup|fresh bread|sweet berries|ginger cookies|pancakes|roasted nuts".split("|")
WEATHER = "sunny windy rainy cold foggy warm snowy".split()

OPENINGS = (
    "Once upon a time, there was a {trait} {kind} named {name}. {name} lived {place}.|"
    "Once upon a time, a {trait} {kind} called {name} lived {place}.|"
    "Once upon a time there lived a {kind} {place}. {Their} name was {name}, and {they} was very {trait}.|"
    "One day, a {trait} {kind} named {name} woke up early. {They} lived {place}.|"
    "There once was a {kind} named {name} who lived {place}. Everybody knew that {name} was {trait}.|"
    "Long ago, {place}, there lived a {trait} {kind}. {Their} name was {name}."
).split("|")
GIRL_OPENINGS = (
    "Once upon a time, there existed a little girl who liked to have adventures. She wanted to go to places and "
    "meet new people, and have fun. Her name was {name}, and she lived {place}.|"
    "Once upon a time, there was a little girl named {name}. She lived {place} and liked to have adventures.|"
    "Once upon a time, there was a little girl who lived {place}. Her name was {name}."
).split("|")

PLOTS = [
    (  # a lost thing is found
        "{They} had {thing} that {they} loved very much.|The best thing {they} owned was {thing}.",
        "One {weather} morning, {the_thing} was gone.|But one {weather} day, {name} could not find {the_thing}.",
        "{name} looked under the bed and behind the door, but it was not there.|"
        "{They} looked everywhere, in the house and in the garden.",
        '"Where can it be?" {name} asked, and {they} began to cry.|'
        '{name} felt very sad. "I will never find it," {they} said.',
        'Then a {helper} named {friend} came by. "Do not worry," said {friend}. "I will help you look."|'
        'A {helper} named {friend} heard {them}. "Let us look together," said {friend}.',
        "They walked along the path, and there, in the tall grass, lay {the_thing}.|"
        "They looked near the old bridge, and at last {friend} saw {the_thing} between two stones.",
        '{name} was so happy that {they} hugged {friend}.|"Thank you!" said {name}, and {they} jumped for joy.',
        "From that day on, {name} and {friend} were best friends.|"
        "{name} learned that everything is easier with the help of a friend.",
    ),
    (  # a storm
        "One {weather} afternoon, dark clouds came over the hills.|One evening, a big storm came.",
        "The wind blew hard, and the rain fell on the roof.|"
        "There was thunder and lightning, and the trees bent in the wind.",
        "{name} was safe and warm inside, but then {they} heard a small voice outside.|"
        "Then {name} heard somebody knock at the door.",
        'It was a {helper} named {friend}, wet and cold. "Please let me in," said {friend}.|'
        'There stood a little {helper}. "My name is {friend}. I have lost my way," it said.',
        "{name} opened the door at once and gave {friend} some {food}.|"
        '"Come in!" said {name}. {They} made a fire and shared {their} {food}.',
        "They sat by the fire and told each other stories until the storm was over.|"
        "They sang songs all night, and the storm did not seem so loud any more.",
        "In the morning, the sun was shining, and there was a rainbow in the sky.|"
        "When the sun came up, the world was bright and clean.",
        '{friend} thanked {name} and said, "A kind heart is the warmest fire."|'
        "{name} was glad, because {they} had found a new friend.",
    ),
    (  # sharing
        "{They} had a big basket of {food}.|One {weather} day, {name} made a lot of {food}.",
        '{name} wanted to eat it all alone.|"This is all mine," said {name}.',
        'A {helper} named {friend} came and asked, "May I have a little?"|'
        "Then {friend} the {helper} came along. {friend} was very hungry.",
        "At first, {name} said no. But then {they} saw how sad {friend} was.|"
        "{name} shook {their} head. {friend} went away with a sad face.",
        '{name} thought about it for a while. "I am sorry," {they} said. "Let us share."|'
        'Soon {name} felt bad and ran after {friend}. "Wait! There is enough for two," {they} said.',
        "They sat down together under a tree and ate.|So they sat in the grass and ate together.",
        "The {food} tasted much better than before.|They laughed and talked until the sun went down.",
        "{name} learned that sharing makes everything sweeter.|"
        "And {name} never forgot that good things are better when we share them.",
    ),
    (  # learning a skill
        "More than anything, {name} wanted to learn how to {skill}.|{name} had a dream. {They} wanted to {skill}.",
        "{They} tried and tried, but it always went wrong.|On the first day it did not work at all.",
        'The others laughed. "You will never do it," they said.|'
        '"It is too hard," said the others. "Why do you not give up?"',
        "{name} went home and was very sad.|That night, {name} could not sleep.",
        'The next day, an old {helper} named {friend} said, "Try a little bit every day."|'
        'Then {name} met {friend}, a wise old {helper}. "You only need to practise," said {friend}.',
        "So {name} practised every morning, in the sun and in the rain.|"
        "{name} listened and practised every day for many weeks.",
        "And one {weather} day, it worked! {name} could {skill} better than anybody.|"
        "At last the day came when {name} could really {skill}. Everybody clapped.",
        "{name} smiled, because {they} had not given up.|"
        '"Never give up," said {friend}, and {name} nodded with a big smile.',
    ),
    (  # the truth
        "One day, {name} was playing with {thing} inside the house.|"
        "{name} liked to run and jump in the house, although it was not allowed.",
        "Suddenly there was a loud noise. {friend}'s best cup was broken.|"
        "Then it happened. {They} knocked over the flowers that belonged to {friend} the {helper}.",
        '{name} was afraid and hid behind a chair.|"Oh no," thought {name}. "What shall I do now?"',
        '"Who did this?" asked {friend}.|Soon {friend} came home and asked what had happened.',
        "{name} wanted to say that it was the wind. But {they} did not like to lie.|"
        "{name} looked at the floor. {Their} heart beat fast.",
        '"It was me," {name} said. "I am very sorry."|So {name} took a deep breath and told the truth.',
        '{friend} was not angry. "Thank you for being honest," said {friend}.|'
        '{friend} smiled. "Things can be repaired. It is good that you told me."',
        "They cleaned up together, and then they had some {food}.|"
        "{name} felt light again. It is always best to tell the truth.",
    ),
    (  # a journey
        "One {weather} morning, {name} found {thing} near the road.|"
        "One day, {name} took {thing} and went for a long walk.",
        '"I want to see the sea," said {name}, and {they} started to walk.|'
        "{name} wanted to know what was behind the mountains.",
        "On the way, {they} met a {helper} named {friend}.|"
        "After a while, {they} came to a bridge. There sat {friend} the {helper}.",
        '"May I come with you?" asked {friend}. "Of course," said {name}.|'
        '"Where are you going?" asked {friend}. "Far away," said {name}. "Come with me!"',
        "They walked over hills and through dark woods.|They crossed a river and slept under the stars.",
        "When {name} was tired, {friend} sang a song. When {friend} was hungry, {name} shared the {food}.|"
        "The way was long, but they helped each other.",
        "At last they stood on a high hill and saw the wide blue sea.|"
        "On the third day, they saw a beautiful valley full of flowers.",
        '"It is good to see new places," said {name}, "but it is best to see them with a friend."|'
        "Then they went home together, and they told everybody about their adventure.",
    ),
    (  # a rescue
        "One {weather} day, {name} heard a cry from the river.|One morning, {name} heard somebody call for help.",
        "A little {helper} named {friend} had fallen into the water.|"
        "{friend}, a young {helper}, was stuck in a deep hole.",
        '{name} was afraid, but {they} knew that {they} had to help.|"Hold on!" shouted {name}. "I am coming!"',
        "{They} found a long rope and threw one end to {friend}.|"
        "{They} took a long branch and held it out to {friend}.",
        "{name} pulled with all {their} strength, and slowly {friend} came up.|"
        "{They} pulled and pulled, until {friend} was safe.",
        '"You saved me!" said {friend}.|{friend} was cold and tired, but very thankful.',
        "As a present, {friend} gave {name} {thing}.|That evening there was a feast with {food} for everybody.",
        "{name} learned that being brave means helping even when you are afraid.|"
        "Since that day, everybody called {them} {name} the Brave.",
    ),
    (  # a garden and patience
        "In spring, {name} planted a small seed in the garden.|{friend} the {helper} gave {name} a tiny seed.",
        '"Tomorrow I will have a big flower," {they} said.|{name} could not wait to see what it would become.',
        "But the next day there was only brown earth.|Every morning {name} looked, but nothing happened.",
        '{name} was angry. "This seed is no good," {they} said.|"Why does it not grow?" {name} asked.',
        '"Give it water and time," said {friend}. "Good things grow slowly."|'
        '{friend} smiled and said, "A seed needs sun, water and patience."',
        "So {name} gave it a little water every day.|{name} waited and waited, on {weather} days and on rainy days.",
        "One morning there was a small green leaf, and soon there was a flower as yellow as the sun.|"
        "After many weeks, a tall plant stood there, full of red berries.",
        "{name} was proud and happy, and {they} learned to be patient.|"
        '"Now I know that waiting is worth it," said {name}.',
    ),
    (  # a night and a light
        "{name} was afraid of the dark.|When the sun went down, {name} always felt a little afraid.",
        "One night, there was a strange sound at the window.|One night, {they} saw two small lights between the trees.",
        '{name} hid under the blanket and did not move.|"Who is there?" {name} asked with a small voice.',
        '"It is only me," said {friend} the {helper}.|It was {friend}, the {helper} from next door.',
        '"Come outside," said {friend}. "I want to show you something."|'
        "{friend} took {name} by the hand and led {them} out.",
        "They looked up and saw a thousand stars.|The moon was round and bright, and the stars were shining.",
        '"How beautiful!" said {name}.|{name} had never seen anything so wonderful.',
        "After that night, {name} was not afraid of the dark any more.|"
        '"The dark is only the place where the stars live," said {friend}, and {name} smiled.',
    ),
    (  # two heads, one race
        "Every year there was a big race {place}.|One {weather} day, there was a race for everybody.",
        "{name} wanted to win the prize, {thing}.|The prize was {thing}, and {name} wanted it very much.",
        'Next to {them} stood {friend} the {helper}. "I am faster than you," said {friend}.|'
        '{friend} the {helper} laughed and said, "I will win, as always."',
        "They ran past the mill and over the bridge.|Off they went, up the hill and down again.",
        "Suddenly {friend} fell and hurt a leg.|Near the end, {friend} fell over a stone and began to cry.",
        "{name} could have won. But {they} stopped and helped {friend} to stand up.|"
        '{name} stopped at once. "Lean on me," {they} said.',
        "Together they walked over the line, and everybody cheered.|"
        "They came last, but all the others clapped for them.",
        '"A good friend is better than a prize," said {friend}.|'
        "{name} got {the_thing} after all, because {they} had the kindest heart.",
    ),
    (  # a surprise
        "Today was {name}'s birthday, but nobody said a word.|"
        "It was the birthday of {name}. {They} waited for visitors, but nobody came.",
        '"Have they all forgotten me?" {name} asked.|{name} sat alone at the window and looked out.',
        "{They} went for a walk because {they} was sad.|So {name} went out into the {weather} day.",
        'On the path {they} met {friend} the {helper}. "Come quickly," said {friend}.|'
        'There was {friend} the {helper}. "You must come with me," said {friend}. "It is important."',
        "They ran to the big tree, and there {name} saw lights and flags.|"
        "{friend} led {name} to a garden full of lights.",
        '"Surprise!" shouted all the friends.|All the animals jumped out and sang a song.',
        "There was plenty of {food}, and {name} got {thing} as a present.|"
        "They ate {food} and danced until the moon came up.",
        "It was the best day of the year, and {name} fell asleep with a smile.|"
        "{name} knew now that good friends never forget.",
    ),
]
SKILLS = "swim|fly|sing|dance|paint|climb trees|skate on the ice|play the flute|run fast|tell stories".split("|")
ENDINGS = ("The end.", "", "", "And they lived happily ever after.")


def _definite(thing: str) -> str:
    return "the " + thing.split(" ", 1)[1]


def make_story(rng: Random, kind: str | None = None) -> str:
    """A story of eight to twelve sentences about a hero of the given kind ("fox", "girl", …), or of any kind."""
    kind = kind or rng.choice((*ANIMALS, *ANIMALS, "girl", "girl", "boy", "girl", "boy"))
    female = kind == "girl" or (kind != "boy" and rng.random() < 0.5)
    name = rng.choice(GIRLS if female else BOYS)
    thing = rng.choice(THINGS)
    slots = {
        "kind": kind,
        "name": name,
        "friend": rng.choice(FRIENDS),
        "helper": rng.choice([a for a in ANIMALS if a != kind and a[0] not in "aeiou"]),
        "trait": rng.choice(TRAITS),
        "place": rng.choice(PLACES),
        "weather": rng.choice(WEATHER),
        "food": rng.choice(FOODS),
        "skill": rng.choice(SKILLS),
        "thing": thing,
        "the_thing": _definite(thing),
        "they": "she" if female else "he",
        "They": "She" if female else "He",
        "them": "her" if female else "him",
        "their": "her" if female else "his",
        "Their": "Her" if female else "His",
    }
    opening = rng.choice(GIRL_OPENINGS if kind == "girl" else OPENINGS)
    sentences = [opening, *(rng.choice(s.split("|")) for s in rng.choice(PLOTS)), rng.choice(ENDINGS)]
    text = " ".join(s.format(**slots) for s in sentences if s)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    return text
