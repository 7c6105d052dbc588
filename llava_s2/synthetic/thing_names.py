"""The 150 single words that scenes show, each with the emoji (or two) that draws it.

No people, faces, flags or signs. A word stands for one thing, whatever its view: the cat's head and the cat are both
``cat``.
"""

_LISTED = """
dog🐕🐶 cat🐈🐱 mouse🐁🐭 rabbit🐇🐰 fox🦊 bear🐻 panda🐼 tiger🐅🐯 lion🦁 cow🐄🐮 pig🐖🐷 frog🐸 monkey🐒🐵 chicken🐔
penguin🐧 bird🐦 duck🦆 owl🦉 horse🐎🐴 bee🐝 caterpillar🐛 butterfly🦋 snail🐌 ladybug🐞 spider🕷 turtle🐢 snake🐍
octopus🐙 fish🐟🐠 dolphin🐬 whale🐳🐋 crocodile🐊 zebra🦓 elephant🐘 giraffe🦒 sheep🐑 flamingo🦩 squirrel🐿
dinosaur🦕🦖 cactus🌵 tree🌳 palm🌴 mushroom🍄 rose🌹 tulip🌷 sunflower🌻 clover🍀 moon🌙 star⭐ rainbow🌈 cloud☁
snowflake❄ fire🔥 lightning⚡ apple🍎 lemon🍋 banana🍌 watermelon🍉 grapes🍇 strawberry🍓 cherry🍒 peach🍑
pineapple🍍 tomato🍅 eggplant🍆 broccoli🥦 carrot🥕 bread🍞 cheese🧀 egg🥚🍳 hamburger🍔 fries🍟 pizza🍕 sushi🍣
donut🍩 cake🎂🍰 chocolate🍫 candy🍬 lollipop🍭 coffee☕ beer🍺 basketball🏀 football⚽ kite🪁 trophy🏆 medal🏅
guitar🎸 piano🎹 trumpet🎺 violin🎻 microphone🎤 headphones🎧 radio📻 phone📱 laptop💻 camera📷 television📺 clock⏰
flashlight🔦 candle🕯 book📕📘📗 envelope✉ pencil✏ scissors✂ lock🔒 key🔑 hammer🔨 telescope🔭 syringe💉 door🚪
bed🛏 chair🪑 bathtub🛁 balloon🎈 gift🎁 crown👑 hat🎩 glasses👓 shirt👕 jeans👖 dress👗 shoe👟 backpack🎒
umbrella☂🌂 bell🔔 rocket🚀 airplane✈ helicopter🚁 car🚗 bus🚌 truck🚚🚛 tractor🚜 bicycle🚲 motorcycle🏍 train🚂
sailboat⛵ anchor⚓ house🏠 castle🏰 tent⛺ robot🤖 ghost👻 skull💀 pumpkin🎃 snowman⛄ dice🎲 bomb💣 globe🌍
hourglass⏳ trashcan🗑
"""


def _parse(listed: str) -> dict[str, str]:
    names = {}
    for entry in listed.split():
        word = "".join(character for character in entry if character.isascii())
        names[word] = entry[len(word) :]
    return names


NAMES: dict[str, str] = _parse(_LISTED)

# Things that are found in every colour: their sprites are also tinted, and a question can ask for the colour.
TINTED: tuple[str, ...] = (
    *("balloon", "book", "umbrella", "car", "bus", "truck", "shirt", "dress", "hat", "shoe", "backpack"),
    *(
        "bell",
        "key",
        "lock",
        "chair",
        "kite",
        "gift",
        "guitar",
        "candle",
        "bicycle",
        "house",
        "tent",
        "phone",
        "camera",
    ),
    *("butterfly", "bird", "fish", "robot"),
)
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (208, 28, 32),
    "orange": (243, 126, 12),
    "yellow": (246, 218, 30),
    "green": (32, 152, 52),
    "blue": (28, 76, 214),
    "purple": (124, 34, 164),
    "pink": (250, 142, 190),
    "white": (250, 250, 250),
}

# Words that take no article: plurals, and things that are not counted.
_WITHOUT_ARTICLE = frozenset(
    (
        *("grapes", "fries", "scissors", "glasses", "jeans", "headphones", "dice", "bread"),
        *("chocolate", "coffee", "broccoli", "cheese", "sushi", "fire", "lightning", "candy", "beer"),
    )
)


def with_article(name: str, color: str | None = None) -> str:
    """``a fox``, ``an owl``, ``an orange key``, ``popcorn``."""
    phrase = f"{color} {name}" if color else name
    if name in _WITHOUT_ARTICLE:
        return phrase
    vowel = phrase[0] in "aeiou" and not phrase.startswith("uni")
    return f"{'an' if vowel else 'a'} {phrase}"
