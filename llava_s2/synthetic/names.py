"""The single words that the embedded default knows, each with the emoji (or two) that shows it.

No people, faces, flags or signs. A word stands for one thing, whatever its view: the cat's head and the cat are both
``cat``.
"""

_LISTED = """
dog🐕🐶 cat🐈🐱 mouse🐁🐭 rabbit🐇🐰 fox🦊 bear🐻 panda🐼 koala🐨 tiger🐅🐯 lion🦁 cow🐄🐮 pig🐖🐷 frog🐸 monkey🐒🐵
chicken🐔 rooster🐓 penguin🐧 bird🐦 duck🦆 eagle🦅 owl🦉 bat🦇 wolf🐺 boar🐗 horse🐎🐴 unicorn🦄 bee🐝
caterpillar🐛 butterfly🦋 snail🐌 ladybug🐞 ant🐜 spider🕷 scorpion🦂 turtle🐢 snake🐍 lizard🦎 octopus🐙
squid🦑 shrimp🦐 lobster🦞 crab🦀 fish🐟🐠 dolphin🐬 whale🐳🐋 shark🦈 crocodile🐊 zebra🦓 gorilla🦍
elephant🐘 hippo🦛 rhino🦏 camel🐫 giraffe🦒 kangaroo🦘 sheep🐑 goat🐐 deer🦌 turkey🦃 peacock🦚 parrot🦜
swan🦢 flamingo🦩 raccoon🦝 squirrel🐿 hedgehog🦔 dragon🐉🐲 dinosaur🦕🦖 cactus🌵 tree🌳 palm🌴 mushroom🍄
rose🌹 tulip🌷 sunflower🌻 clover🍀 sun☀ moon🌙 star⭐ rainbow🌈 cloud☁ snowflake❄ fire🔥 lightning⚡
apple🍎 pear🍐 lemon🍋 banana🍌 watermelon🍉 grapes🍇 strawberry🍓 cherry🍒 peach🍑 mango🥭 pineapple🍍
coconut🥥 kiwi🥝 tomato🍅 eggplant🍆 avocado🥑 broccoli🥦 cucumber🥒 pepper🌶 corn🌽 carrot🥕 potato🥔
croissant🥐 bread🍞 pretzel🥨 cheese🧀 egg🥚🍳 bacon🥓 hamburger🍔 fries🍟 pizza🍕 sandwich🥪 taco🌮
popcorn🍿 sushi🍣 donut🍩 cookie🍪 cake🎂🍰 cupcake🧁 chocolate🍫 candy🍬 lollipop🍭 milk🥛 coffee☕ wine🍷
beer🍺 basketball🏀 football⚽ baseball⚾ tennis🎾 kite🪁 trophy🏆 medal🏅 guitar🎸 piano🎹 trumpet🎺
violin🎻 drum🥁 microphone🎤 headphones🎧 radio📻 phone📱 telephone☎ laptop💻 printer🖨 camera📷
television📺 clock⏰ watch⌚ bulb💡 flashlight🔦 candle🕯 book📕📘📗 newspaper📰 envelope✉ pencil✏
scissors✂ lock🔒 key🔑 hammer🔨 axe🪓 wrench🔧 gear⚙ magnet🧲 microscope🔬 telescope🔭 pill💊 syringe💉
door🚪 bed🛏 chair🪑 toilet🚽 bathtub🛁 broom🧹 basket🧺 balloon🎈 gift🎁 crown👑 hat🎩 cap🧢 glasses👓
shirt👕 jeans👖 dress👗 socks🧦 shoe👟 boot👢 backpack🎒 umbrella☂🌂 ring💍 diamond💎 bell🔔 rocket🚀
airplane✈ helicopter🚁 car🚗 taxi🚕 bus🚌 truck🚚🚛 tractor🚜 bicycle🚲 motorcycle🏍 train🚂 sailboat⛵
ship🚢 anchor⚓ house🏠 castle🏰 tent⛺ robot🤖 ghost👻 skull💀 pumpkin🎃 teddy🧸 snowman⛄ dice🎲 bomb💣
globe🌍 hourglass⏳ trashcan🗑 barrel🛢
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
    *("balloon", "book", "umbrella", "car", "bus", "truck", "shirt", "dress", "hat", "cap", "shoe", "boot", "backpack"),
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
        *("grapes", "fries", "scissors", "glasses", "jeans", "socks", "headphones", "dice", "popcorn", "bread", "milk"),
        *("bacon", "chocolate", "coffee", "corn", "broccoli", "cheese", "sushi", "fire", "lightning", "candy", "beer"),
        *("wine", "tennis"),
    )
)


def with_article(name: str, color: str | None = None) -> str:
    """``a fox``, ``an owl``, ``an orange key``, ``popcorn``."""
    phrase = f"{color} {name}" if color else name
    if name in _WITHOUT_ARTICLE:
        return phrase
    vowel = phrase[0] in "aeiou" and not phrase.startswith("uni")
    return f"{'an' if vowel else 'a'} {phrase}"
