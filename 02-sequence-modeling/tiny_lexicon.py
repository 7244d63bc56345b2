"""The words of tiny world: who lives there, where, with what, and what they do.

Within a list no text is the beginning of another, so a reader who has seen what precedes knows
from the text alone which entry was chosen. That is what makes the grammar unambiguous
(README, "A world that knows its own entropy").
"""

from __future__ import annotations

MEN = (
    "Adam",         "Ben",         "Carlos",         "David",         "Emil",         "Felix",
    "George",         "Hugo",         "Ivan",         "Jonas",         "Karl",         "Leo",
    "Martin",         "Noah",         "Oscar",         "Paul",         "Robert",
    "Samuel",         "Tom",         "Victor",
)  # fmt: skip
WOMEN = (
    "Alice",         "Bella",         "Clara",         "Diana",         "Eva",         "Frida",
    "Greta",         "Hannah",         "Iris",         "Julia",         "Kate",         "Lucy",
    "Maria",         "Nora",         "Olga",         "Petra",         "Rosa",         "Sarah",
    "Tina",         "Vera",
)  # fmt: skip

# Each place with the preposition that goes before it.
PLACES = (
    ("in", "kitchen"), ("in", "garden"), ("in", "library"), ("in", "forest"), ("in", "bakery"),
    ("in", "attic"), ("in", "cellar"), ("in", "museum"), ("in", "school"), ("in", "theatre"),
    ("in", "church"), ("in", "stable"), ("in", "tower"), ("in", "valley"), ("in", "orchard"),
    ("in", "hotel"), ("at", "station"), ("at", "market"), ("at", "harbour"), ("at", "lake"),
    ("at", "airport"), ("at", "farm"), ("at", "beach"), ("at", "river"), ("on", "bridge"),
    ("on", "island"), ("on", "roof"), ("on", "hill"), ("on", "square"), ("on", "ship"),
)  # fmt: skip

SINGULAR_THINGS = (
    "apple",         "ball",         "basket",         "bell",         "blanket",
    "book",         "bottle",         "bowl",         "box",         "candle",         "chair",
    "clock",         "coat",         "cup",         "drum",         "flag",         "flute",
    "guitar",         "hammer",         "hat",         "jacket",         "kite",
    "ladder",         "lamp",         "letter",         "map",         "mirror",
    "needle",         "painting",         "pencil",         "pillow",         "plate",
    "ribbon",         "ring",         "rope",         "scarf",         "shell",         "spoon",
    "stone",         "sword",         "ticket",         "umbrella",         "vase",
    "violin",         "wallet",         "watch",         "whistle",
)  # fmt: skip
PLURAL_THINGS = (
    "boots",         "coins",         "cherries",         "eggs",         "feathers",
    "flowers",         "gloves",         "grapes",         "keys",         "marbles",
    "nails",         "oranges",         "pears",         "photographs",         "roses",
    "scissors",         "shoes",         "socks",         "stamps",         "tulips",
)  # fmt: skip
ADJECTIVES = (
    "red",         "blue",         "green",         "yellow",         "black",         "white",
    "brown",         "golden",         "silver",         "small",         "large",
    "heavy",         "old",         "broken",         "wooden",         "dusty",
    "beautiful",         "round",
)  # fmt: skip
VOWELS = "aeiou"

JOBS_OF_MEN = (
    "builder", "captain", "doctor", "engineer", "judge", "pilot", "professor", "scientist",
)  # fmt: skip
JOBS_OF_WOMEN = (
    "baker", "cleaner", "dancer", "florist", "maid", "nurse", "secretary", "teacher",
)  # fmt: skip

MOODS = (
    "happy",         "sad",         "tired",         "hungry",         "angry",         "proud",
    "lonely",         "nervous",         "curious",         "brave",         "bored",
    "calm",         "thirsty",         "cheerful",         "jealous",         "relieved",
)  # fmt: skip
REASONS = (
    "late",         "cold",         "early",         "lost",         "bankrupt",
    "restless",         "homesick",         "impatient",         "careful",         "busy",
    "ill",         "generous",
)  # fmt: skip
INSULTS = (
    "idiot", "fool", "liar", "coward", "thief", "clown",
)  # fmt: skip
NUMBERS = ("nothing", "one thing", "two things", "three things", "four things", "five things")
DIGITS = tuple("0123456789")

FIRST_TIMES = (
    "One morning", "One evening", "Last night", "On Monday", "On Friday", "On a rainy day",
    "In spring", "In autumn", "During the holidays", "Many years ago", "Yesterday",
    "Early on Sunday",
)  # fmt: skip
LATER_TIMES = (
    "Then", "Later", "Soon", "After lunch", "After dinner", "At noon", "Before sunset",
    "A little later", "Suddenly", "The next day", "An hour later", "Meanwhile", "At midnight",
    "Finally", "Once again", "That afternoon",
)  # fmt: skip

GO = ("went", "walked", "ran", "hurried", "cycled", "drove", "wandered", "returned", "moved")
FIND = ("found", "discovered", "bought", "borrowed", "received", "obtained")
TAKE = ("picked up", "took", "grabbed", "collected", "seized")
PUT = ("left", "put", "dropped", "hid", "forgot")
GIVE = ("gave", "handed", "passed", "lent", "offered")
RECALL = ("remembered", "knew", "said", "explained", "wrote", "was sure", "could see")
PASTIMES = (
    "sang a song", "danced", "fell asleep", "laughed out loud", "told a joke", "waited",
    "looked at the sky", "cried", "sat down", "made some tea", "whistled a tune", "yawned",
    "counted the stars", "played a game", "dreamed of the sea", "listened to the wind",
    "drank some water", "ate a sandwich", "cleaned the windows", "watched the birds",
)  # fmt: skip
MANNERS = (
    "at once", "with a smile", "without a word", "very slowly", "in silence", "as always",
    "with great care", "for a while", "again", "before the rain came", "until the bell rang",
    "just in time", "while everyone slept", "like a cat", "against all advice", "by mistake",
)  # fmt: skip
