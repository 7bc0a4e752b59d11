"""The nouns of the dataset: names, synonyms, plurals and emoji.

Names follow the English short names of Unicode CLDR, some of them shortened ("french fries" is "fries"). A noun can
have several emoji, its looks; captions do not specify the look.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

#: emoji (one or more looks) and name; `_` stands for a space, `/` precedes a synonym.
_ANIMALS = """
🐵🐒monkey 🦍gorilla 🦧orangutan 🐶🐕dog/puppy 🐩poodle 🐺wolf 🦊fox 🦝raccoon 🐱🐈cat/kitten 🦁lion 🐯🐅tiger
🐆leopard 🐴🐎horse/pony 🦄unicorn 🦓zebra 🦌deer 🦬bison 🐮🐄cow 🐂ox 🐷🐖pig/piglet 🐗boar 🐏ram 🐑sheep/lamb
🐐goat 🐪camel 🦙llama/alpaca 🦒giraffe 🐘elephant 🦣mammoth 🦏rhino/rhinoceros 🦛hippo/hippopotamus 🐭🐁mouse
🐀rat 🐹hamster 🐰🐇rabbit/bunny 🐿squirrel/chipmunk 🦫beaver 🦔hedgehog 🦇bat 🐻bear 🐻‍❄polar_bear 🐨koala
🐼panda 🦥sloth 🦦otter 🦨skunk 🦘kangaroo 🦡badger 🐾paw_print 🦃turkey 🐔chicken/hen 🐓rooster
🐣hatching_chick 🐤chick 🐦bird 🐧penguin 🕊dove/pigeon 🦅eagle 🦆duck 🦢swan 🦉owl 🦤dodo 🪶feather 🦩flamingo
🦚peacock 🦜parrot 🪿goose 🐦‍⬛crow/raven 🐸frog/toad 🐊crocodile/alligator 🐢turtle/tortoise 🦎lizard 🐍snake
🐲🐉dragon 🦕dinosaur 🦖t-rex 🐳🐋whale 🐬dolphin 🦭seal 🐟fish 🐠tropical_fish 🐡pufferfish/blowfish 🦈shark
🐙octopus 🐚seashell/shell 🪸coral 🪼jellyfish 🦀crab 🦞lobster 🦐shrimp 🦑squid 🦪oyster 🐌snail 🦋butterfly
🐛caterpillar/bug 🐜ant 🐝bee/honeybee 🪲beetle 🐞ladybug/ladybird 🦗grasshopper 🕷spider 🕸spider_web/cobweb
🦂scorpion 🦟mosquito 🪰fly 🪱worm
"""
_THINGS = """
💐bouquet 🌸cherry_blossom 🪷lotus 🌹rose 🥀wilted_rose 🌺hibiscus
🌻sunflower 🌼daisy 🌷tulip 🪻hyacinth 🌱seedling/sprout 🪴potted_plant/houseplant 🌲pine_tree/fir 🌳tree
🌴palm_tree 🌵cactus 🌾wheat 🌿herb ☘shamrock 🍀clover 🍁maple_leaf 🍂autumn_leaves 🍃green_leaves 🪹nest
🍄mushroom/toadstool 🍇grapes 🍈melon 🍉watermelon 🍊orange/tangerine 🍋lemon 🍌banana 🍍pineapple 🥭mango
🍎apple 🍐pear 🍑peach 🍒cherries 🍓strawberry 🫐blueberries 🥝kiwi 🍅tomato 🫒olive 🥥coconut 🥑avocado
🍆eggplant/aubergine 🥔potato 🥕carrot 🌽corn 🌶chili/hot_pepper 🫑bell_pepper 🥒cucumber 🥬lettuce 🥦broccoli
🧄garlic 🧅onion 🥜peanuts 🫘beans 🌰chestnut 🫛pea_pod/peas 🍞bread/loaf 🥐croissant 🥖baguette 🥨pretzel
🥯bagel 🥞pancakes 🧇waffle 🧀cheese 🍖meat 🍗drumstick 🥩steak 🥓bacon 🍔burger/hamburger 🍟fries 🍕pizza
🌭hot_dog 🥪sandwich 🌮taco 🌯burrito 🥚egg 🍳fried_egg 🥘paella 🍲stew 🥣porridge 🥗salad 🍿popcorn 🧈butter
🧂salt 🍙rice_ball/onigiri 🍚rice 🍛curry 🍜noodles/ramen 🍝spaghetti/pasta 🍠sweet_potato 🍣sushi 🍤tempura
🥟dumpling 🥠fortune_cookie 🍦ice_cream_cone 🍨ice_cream 🍩donut/doughnut 🍪cookie/biscuit 🎂birthday_cake
🍰cake 🧁cupcake/muffin 🥧pie 🍫chocolate 🍬candy 🍭lollipop 🍮pudding/custard 🍯honey 🍼baby_bottle 🥛milk
☕coffee 🫖teapot 🍵green_tea/tea 🍾champagne 🍷wine 🍸cocktail 🍺beer 🥂toast_glasses 🥃whiskey 🥤soda
🧋bubble_tea 🧃juice_box 🧊ice_cube 🥢chopsticks 🍴fork_and_knife/cutlery 🥄spoon 🔪knife 🫙jar 🏺vase/amphora
🌍globe/earth 🗺map 🧭compass 🏔mountain 🌋volcano 🏝island 🏛temple/museum 🧱bricks 🪨rock/stone 🪵log 🛖hut
🏠house/home 🏡cottage 🏢office_building 🏥hospital 🏦bank 🏪shop/store 🏫school 🏭factory 🏯pagoda 🏰castle
🗼tower 🗽statue ⛪church 🕌mosque 🕍synagogue ⛩shrine/torii ⛲fountain ⛺tent 🎠carousel_horse 🛝slide
🎡ferris_wheel 🎢roller_coaster 💈barber_pole 🎪circus_tent/circus 🚂steam_train/locomotive 🚆train 🚊tram 🚌bus
🚑ambulance 🚒fire_truck/fire_engine 🚓police_car 🚕taxi/cab 🚗car/automobile 🚙suv/jeep 🛻pickup_truck
🚚delivery_truck/truck 🚜tractor 🏎race_car 🏍motorcycle/motorbike 🛵scooter/moped 🦽wheelchair 🛺rickshaw
🚲bicycle/bike 🛴kick_scooter 🛹skateboard 🛼roller_skate 🚏bus_stop 🛢oil_drum/barrel 🛞wheel/tire 🚨siren
🚦traffic_light 🛑stop_sign 🚧barrier ⚓anchor 🛟lifebuoy ⛵sailboat 🛶canoe/kayak 🚤speedboat 🛳cruise_ship
⛴ferry 🚢ship 🛩small_plane ✈airplane/plane 🪂parachute 💺seat 🚁helicopter 🛰satellite 🚀rocket/spaceship
🛸ufo/flying_saucer 🛎bellhop_bell 🧳suitcase/luggage ⏳hourglass ⌚watch/wristwatch ⏰alarm_clock/clock
⏱stopwatch 🕰mantel_clock 🌑new_moon 🌕full_moon 🌙moon/crescent 🌡thermometer ☀sun 🪐planet/saturn ⭐star
☁cloud 🌧rain_cloud 🌨snow_cloud 🌩lightning_cloud 🌪tornado 🌀cyclone/spiral 🌈rainbow 🌂closed_umbrella
☂umbrella ⛱parasol/beach_umbrella ⚡lightning/bolt ❄snowflake ⛄snowman ☄comet 🔥fire/flame 💧droplet/drop
🌊wave 🎃pumpkin 🎄christmas_tree 🎆fireworks 🎇sparkler 🎈balloon 🎉party_popper 🎐wind_chime 🎀ribbon/bow
🎁gift/present 🏆trophy/cup 🏅medal 🥇gold_medal ⚽soccer_ball/football ⚾baseball 🏀basketball 🏐volleyball
🏈american_football 🏉rugby_ball 🎾tennis_ball 🥏frisbee 🏏cricket_bat 🏒ice_hockey 🏓ping_pong 🥊boxing_glove
⛳golf_hole ⛸ice_skate 🎣fishing_rod 🤿diving_mask 🎿skis 🛷sled/sledge 🎯bullseye/target 🪀yo-yo 🪁kite
🔫water_pistol 🎱billiard_ball 🔮crystal_ball 🪄magic_wand/wand 🎮game_controller/gamepad 🕹joystick
🎰slot_machine 🎲dice/die 🧩puzzle_piece 🧸teddy_bear/teddy 🪅pinata 🪩disco_ball 🪆nesting_doll
♟chess_pawn/pawn 🃏joker 🎭theater_masks/masks 🖼painting/picture 🎨palette 🧵thread 🪡needle 🧶yarn 🪢knot
👓glasses 🕶sunglasses 🥽goggles 🥼lab_coat 🦺safety_vest 👔tie/necktie 👕t-shirt/shirt 👖jeans/trousers 🧣scarf
🧤gloves 🧥coat/jacket 🧦socks 👗dress 👘kimono 🥻sari 🩱swimsuit 🩳shorts 👙bikini 👚blouse 🪭hand_fan 👛purse
👜handbag 🛍shopping_bags 🎒backpack/rucksack 🩴flip-flop 👞shoe 👟sneaker 🥾hiking_boot 👠high_heel 👡sandal
🩰ballet_shoes 👢boot 🪮comb 👑crown 👒sun_hat 🎩top_hat/hat 🎓graduation_cap 🧢cap 🪖army_helmet
⛑rescue_helmet/helmet 📿beads/necklace 💄lipstick 💍ring 💎diamond/gem 🔈speaker/loudspeaker 📣megaphone 📯horn
🔔bell 🎵musical_note/note 🎤microphone 🎧headphones 📻radio 🎷saxophone 🎺trumpet 🪗accordion 🎸guitar 🎹piano
🎻violin/fiddle 🪕banjo 🥁drum 🪘conga 🪇maracas 🪈flute 📱phone/smartphone ☎telephone 🔋battery 🔌plug
💻laptop/notebook_computer 🖥computer 🖨printer ⌨keyboard 🖱computer_mouse 💾floppy_disk 💿compact_disc
🧮abacus 🎥movie_camera 🎞film 📽projector 🎬clapperboard 📺television/tv 📷camera 📹video_camera/camcorder
🔍magnifying_glass 🕯candle 💡light_bulb/bulb 🔦flashlight/torch 🏮lantern 🪔oil_lamp/lamp 📔notebook
📕📗📘📙book 📖open_book 📚stack_of_books 📜scroll 📄page 📰newspaper 🔖bookmark 🪙coin 💰money_bag
💵banknote/dollar_bill 💳credit_card 🧾receipt ✉envelope/letter 💌love_letter 📦package/box/parcel 📫mailbox
📮postbox ✏pencil 🖊pen 🖌paintbrush/brush 🖍crayon 💼briefcase 📁folder 📅calendar 📈chart 📊bar_chart
📋clipboard 📌pushpin/pin 📎paperclip 📏ruler ✂scissors 🗄file_cabinet 🗑trash_can/bin 🔒lock/padlock 🔑key
🗝old_key 🔨hammer 🪓axe ⛏pickaxe 🗡dagger/sword ⚔crossed_swords 💣bomb 🪃boomerang 🏹bow_and_arrow 🛡shield
🪚saw 🔧wrench/spanner 🪛screwdriver 🔩bolt_and_nut/screw ⚙gear/cog ⚖scales ⛓chains 🪝hook 🧰toolbox 🧲magnet
🪜ladder 🧪test_tube 🧬dna 🔬microscope 🔭telescope 📡satellite_dish 💉syringe 💊pill 🩹bandage/plaster 🩼crutch
🩺stethoscope 🩻x-ray 🚪door 🪞mirror 🪟window 🛏bed 🛋sofa/couch 🪑chair 🚽toilet 🪠plunger 🚿shower
🛁bathtub/bath 🪤mousetrap 🪒razor 🧷safety_pin 🧹broom 🧺basket 🧻toilet_paper 🪣bucket/pail 🧼soap 🫧bubbles
🪥toothbrush 🧽sponge 🧯fire_extinguisher 🛒shopping_cart/trolley ⚰coffin 🪦gravestone/tombstone 🪧placard
🙂smiling_face/smiley 😂laughing_face 😍loving_face 😎cool_face 🤔thinking_face 😴sleeping_face 😢crying_face
😡angry_face 😱screaming_face 🤢sick_face 🥳party_face 🤓nerd_face 🤠cowboy_face 😇angel_face 🥶frozen_face
🤯exploding_head 💀skull 💩poo 🤡clown 👹ogre 👺goblin 👻ghost 👽alien 👾space_invader 🤖robot ❤heart
💔broken_heart 💘heart_with_arrow 💥explosion 💋lips/kiss 👀eyes 👁eye 👃nose 👂ear 🦷tooth 🦴bone 🧠brain
👣footprints 👍thumbs_up 👎thumbs_down ✊fist 👋waving_hand ✋hand 💪muscle/biceps 🦶foot 🎅santa 🧌troll
🧞genie 🧟zombie
"""

#: name, synonyms, share of women if a caption specifies no gender, emoji of a woman and of a man.
_PEOPLE = """
person .5 👩 👨
child/kid .5 👧 👦
elder/old_person .5 👵 👴
baby .5 👶 👶
doctor .3 👩‍⚕ 👨‍⚕
student .5 👩‍🎓 👨‍🎓
teacher .7 👩‍🏫 👨‍🏫
judge .3 👩‍⚖ 👨‍⚖
farmer .3 👩‍🌾 👨‍🌾
cook/chef .3 👩‍🍳 👨‍🍳
mechanic .2 👩‍🔧 👨‍🔧
welder .2 👩‍🏭 👨‍🏭
office_worker .6 👩‍💼 👨‍💼
scientist .4 👩‍🔬 👨‍🔬
programmer .3 👩‍💻 👨‍💻
singer .7 👩‍🎤 👨‍🎤
artist/painter .6 👩‍🎨 👨‍🎨
pilot .2 👩‍✈ 👨‍✈
astronaut .3 👩‍🚀 👨‍🚀
firefighter .2 👩‍🚒 👨‍🚒
police_officer .3 👮‍♀ 👮‍♂
detective .4 🕵‍♀ 🕵‍♂
guard .2 💂‍♀ 💂‍♂
builder .2 👷‍♀ 👷‍♂
superhero .4 🦸‍♀ 🦸‍♂
villain .3 🦹‍♀ 🦹‍♂
wizard/mage .3 🧙‍♀ 🧙‍♂
fairy .8 🧚‍♀ 🧚‍♂
vampire .4 🧛‍♀ 🧛‍♂
elf .5 🧝‍♀ 🧝‍♂
dancer .8 💃 🕺
runner .5 🏃‍♀ 🏃‍♂
surfer .4 🏄‍♀ 🏄‍♂
cyclist .4 🚴‍♀ 🚴‍♂
"""
_IRREGULAR = {
    one: many or one
    for one, _, many in (
        pair.partition(":")
        for pair in (
            "sheep|fish|tropical fish|pufferfish|deer|bison|shrimp|squid|dice|die:dice|mouse:mice|"
            "computer mouse:computer mice|wolf:wolves|goose:geese|ox:oxen|fly:flies|person:people|"
            "old person:old people|child:children|tooth:teeth|foot:feet|snowman:snowmen|knife:knives|elf:elves|"
            "loaf:loaves|maple leaf:maple leaves|stack of books:stacks of books|bow and arrow:bows and arrows|"
            "heart with arrow:hearts with arrow"
        ).split("|")
    )
}
#: names that are plurals.
_PLURAL = frozenset(
    "grapes cherries blueberries fries peanuts beans peas pancakes noodles chopsticks scissors glasses sunglasses "
    "goggles jeans trousers shorts socks gloves maracas headphones scales chains bubbles eyes footprints lips masks "
    "beads bricks skis autumn_leaves green_leaves crossed_swords ballet_shoes shopping_bags fireworks theater_masks "
    "toast_glasses thumbs_up thumbs_down".split()
)
#: uncountable names.
_MASS = frozenset(
    "corn bread meat bacon porridge popcorn butter salt rice curry spaghetti pasta ramen sushi tempura chocolate honey "
    "milk coffee green_tea tea champagne wine beer bubble_tea soda wheat coral lettuce broccoli garlic cheese cutlery "
    "luggage yarn thread soap toilet_paper dna film ice_cream fire lightning ping_pong ice_hockey stew paella poo "
    "whiskey".split()
)


@dataclasses.dataclass(frozen=True)
class Noun:
    """A noun and its emoji.

    Attributes:
        name: the most common name.
        synonyms: other names.
        looks: emoji, one or several; for people a woman and a man.
        women: share of women if a caption specifies no gender; None except for people.
        animal: whether it is an animal, or a part or a trace of one.
    """

    name: str
    synonyms: tuple[str, ...]
    looks: tuple[str, ...]
    women: float | None = None
    animal: bool = False

    @property
    def person(self) -> bool:
        """Whether the noun is a person, with a gender and a skin tone."""
        return self.women is not None


def plural(name: str) -> str:
    """The plural of a name.

    >>> plural("fox"), plural("polar bear"), plural("cherry blossom"), plural("mouse")
    ('foxes', 'polar bears', 'cherry blossoms', 'mice')
    """
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if not countable(name):
        return name
    if name.endswith(("s", "x", "z", "ch", "sh")):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    if name in ("potato", "tomato", "sweet potato", "volcano", "mango", "mosquito", "superhero"):
        return f"{name}es"
    return f"{name}s"


def countable(name: str) -> bool:
    """Whether a name can follow a number; false for plurals and uncountable names."""
    return name.replace(" ", "_") not in _PLURAL | _MASS


def article(name: str) -> str:
    """The indefinite article of a name, or "" before plurals and uncountable names.

    >>> article("owl"), article("unicorn"), article("grapes")
    ('an', 'a', '')
    """
    if not countable(name):
        return ""
    vowel = name[0] in "aeiou" and not name.startswith(("uni", "ufo", "ukulele"))
    return "an" if vowel or name in ("x-ray", "suv", "hourglass") else "a"


def looks(written: str) -> tuple[str, ...]:
    """Split a string into emoji: a base, its variation selector, and the parts that follow a joiner."""
    return tuple(re.findall(r"[^\u200d\ufe0f]\ufe0f?(?:\u200d[^\u200d\ufe0f]\ufe0f?)*", written))


def _things(table: str, *, animal: bool) -> Iterator[Noun]:
    for item in table.split():
        emoji, names = re.fullmatch(r"([^a-z]+)(.+)", item).groups()  # type: ignore[union-attr]
        name, *synonyms = names.replace("_", " ").split("/")
        yield Noun(name, tuple(synonyms), looks(emoji), animal=animal)


def _people() -> Iterator[Noun]:
    for line in _PEOPLE.strip().splitlines():
        names, share, woman, man = line.split()
        name, *synonyms = names.replace("_", " ").split("/")
        yield Noun(name, tuple(synonyms), (woman, man), float(share))


def _nouns() -> Iterator[Noun]:
    yield from _things(_ANIMALS, animal=True)
    yield from _things(_THINGS, animal=False)
    yield from _people()


#: name -> noun, in the order of the tables.
NOUNS: dict[str, Noun] = {noun.name: noun for noun in _nouns()}
PEOPLE: tuple[str, ...] = tuple(name for name, noun in NOUNS.items() if noun.person)
