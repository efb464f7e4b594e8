"""Rows written by hand: what everybody knows and no library holds. Facts and common usage, from nobody's list.

A text is either `object: subject, subject, ...` a line, or `subject > object; subject > object`. The stereotypes are what texts commonly
pair, not what is so: they are here to measure how a model pairs them.
"""

from __future__ import annotations

__all__ = ["WRITTEN", "Row", "grouped", "paired"]

Row = tuple[str, str]


def grouped(text: str) -> list[Row]:
    """Rows in the order of their subjects, so that the objects are mixed."""
    lines = [line.split(": ", 1) for line in text.strip().splitlines()]
    return sorted((subject.strip(), object.strip()) for object, subjects in lines for subject in subjects.split(", "))


def paired(text: str) -> list[Row]:
    """Rows in the order they are written in."""
    rows = [part.split(" > ") for part in " ".join(text.split()).strip("; ").split("; ")]
    return [(subject.strip(), object.strip()) for subject, object in rows]


US_STATE_CAPITAL = """
Alabama > Montgomery; Alaska > Juneau; Arizona > Phoenix; Arkansas > Little Rock; California > Sacramento; Colorado > Denver;
Connecticut > Hartford; Delaware > Dover; Florida > Tallahassee; Georgia > Atlanta; Hawaii > Honolulu; Idaho > Boise;
Illinois > Springfield; Iowa > Des Moines; Kansas > Topeka; Kentucky > Frankfort; Louisiana > Baton Rouge; Maine > Augusta;
Maryland > Annapolis; Massachusetts > Boston; Michigan > Lansing; Minnesota > Saint Paul; Mississippi > Jackson;
Missouri > Jefferson City; Montana > Helena; Nebraska > Lincoln; Nevada > Carson City; New Hampshire > Concord; New Jersey > Trenton;
New Mexico > Santa Fe; New York > Albany; North Carolina > Raleigh; North Dakota > Bismarck; Ohio > Columbus; Oregon > Salem;
Pennsylvania > Harrisburg; Rhode Island > Providence; South Carolina > Columbia; South Dakota > Pierre; Tennessee > Nashville;
Texas > Austin; Utah > Salt Lake City; Vermont > Montpelier; Virginia > Richmond; Washington > Olympia; West Virginia > Charleston;
Wisconsin > Madison; Wyoming > Cheyenne
"""

FOOD_FROM_COUNTRY = """
Japan: sushi, ramen, tempura, miso soup, sashimi, teriyaki
Italy: pizza, spaghetti carbonara, lasagna, risotto, tiramisu, gelato, prosciutto
Mexico: tacos, guacamole, enchiladas, burritos, tamales, mole poblano
India: butter chicken, biryani, samosa, masala dosa, tandoori chicken, naan
France: croissant, baguette, ratatouille, crème brûlée, escargot, quiche lorraine
Spain: paella, gazpacho, churros
China: dim sum, Peking duck, chow mein, mapo tofu
Germany: sauerkraut, bratwurst, pretzel
Greece: moussaka, tzatziki, souvlaki
Thailand: pad thai, tom yum
Korea: kimchi, bibimbap, bulgogi
Vietnam: pho, banh mi
Hungary: goulash
Russia: borscht, beef stroganoff
Turkey: baklava, doner kebab
Poland: pierogi
Austria: Wiener schnitzel, Sachertorte
Switzerland: fondue, raclette
Canada: poutine
Brazil: feijoada
Ethiopia: injera
England: fish and chips, shepherd's pie
Scotland: haggis
Indonesia: nasi goreng
Peru: ceviche
"""

LANDMARK_IN_COUNTRY = """
France: the Eiffel Tower, the Louvre, Notre-Dame Cathedral, Mont Saint-Michel, the Palace of Versailles, the Arc de Triomphe
Italy: the Colosseum, the Leaning Tower of Pisa, the Trevi Fountain, Mount Vesuvius, the Rialto Bridge, the Ponte Vecchio
England: Big Ben, Stonehenge, Buckingham Palace, the Tower of London, Westminster Abbey
Egypt: the Great Sphinx, the Pyramids of Giza, the Valley of the Kings, Abu Simbel
China: the Forbidden City, the Great Wall, the Terracotta Army, Tiananmen Square
India: the Taj Mahal, the Red Fort, the Golden Temple, the Gateway of India
Germany: the Brandenburg Gate, Neuschwanstein Castle, the Reichstag, Cologne Cathedral
Spain: the Alhambra, the Sagrada Família, the Prado Museum
Japan: Mount Fuji, the Golden Pavilion, Osaka Castle
Russia: Red Square, Saint Basil's Cathedral, the Kremlin, the Hermitage Museum, Lake Baikal
Greece: the Acropolis, the Parthenon, Mount Olympus
Australia: the Sydney Opera House, Uluru, the Great Barrier Reef
Peru: Machu Picchu, the Nazca Lines
Brazil: Christ the Redeemer, Sugarloaf Mountain
Turkey: the Hagia Sophia, the Blue Mosque, Topkapi Palace
Jordan: Petra
Cambodia: Angkor Wat
Tanzania: Mount Kilimanjaro
Canada: the CN Tower
Mexico: Chichen Itza, Teotihuacan
Scotland: Edinburgh Castle, Loch Ness
Chile: Easter Island
Austria: Schönbrunn Palace
Denmark: the Little Mermaid statue
Malaysia: the Petronas Towers
"""

PERSON_PLAYS_INSTRUMENT = """
guitar: Jimi Hendrix, Eric Clapton, B.B. King, Carlos Santana, Jimmy Page, Keith Richards, Django Reinhardt, Andrés Segovia
trumpet: Louis Armstrong, Miles Davis, Dizzy Gillespie, Chet Baker, Wynton Marsalis
saxophone: John Coltrane, Charlie Parker, Sonny Rollins, Stan Getz, Kenny G
drums: Ringo Starr, John Bonham, Keith Moon, Buddy Rich, Charlie Watts, Neil Peart, Lars Ulrich
cello: Yo-Yo Ma, Pablo Casals, Jacqueline du Pré, Mstislav Rostropovich
violin: Itzhak Perlman, Yehudi Menuhin, Niccolò Paganini, Jascha Heifetz, Joshua Bell, Hilary Hahn
piano: Frédéric Chopin, Franz Liszt, Glenn Gould, Thelonious Monk, Herbie Hancock, Oscar Peterson, Vladimir Horowitz, Lang Lang
bass: Jaco Pastorius, Charles Mingus, John Entwistle, Geddy Lee
clarinet: Benny Goodman, Artie Shaw
flute: James Galway, Jean-Pierre Rampal
sitar: Ravi Shankar
harmonica: Toots Thielemans, Little Walter
"""

COMPANY_HQ = """
Microsoft > Redmond; Apple > Cupertino; Google > Mountain View; Amazon > Seattle; Starbucks > Seattle; Intel > Santa Clara;
Nvidia > Santa Clara; Netflix > Los Gatos; Adobe > San Jose; Cisco > San Jose; Nike > Beaverton; Coca-Cola > Atlanta;
Delta Air Lines > Atlanta; Home Depot > Atlanta; CNN > Atlanta; Sony > Tokyo; Honda > Tokyo; Nintendo > Kyoto; Nissan > Yokohama;
Hyundai > Seoul; LG > Seoul; BMW > Munich; Siemens > Munich; Allianz > Munich; Volkswagen > Wolfsburg; Mercedes-Benz > Stuttgart;
Porsche > Stuttgart; Adidas > Herzogenaurach; Deutsche Bank > Frankfurt; Lufthansa > Cologne; Bayer > Leverkusen; Volvo > Gothenburg;
Spotify > Stockholm; Ericsson > Stockholm; Nokia > Espoo; Lego > Billund; Philips > Amsterdam; Heineken > Amsterdam;
Michelin > Clermont-Ferrand; BNP Paribas > Paris; Louis Vuitton > Paris; the BBC > London; HSBC > London; Barclays > London;
BP > London; Burberry > London; Ferrari > Maranello; Fiat > Turin; Gucci > Florence; Prada > Milan; Nestlé > Vevey; Novartis > Basel;
Roche > Basel; UBS > Zurich; Rolex > Geneva; Facebook > Menlo Park; Uber > San Francisco; Airbnb > San Francisco;
Salesforce > San Francisco; IBM > Armonk; Pfizer > New York; Goldman Sachs > New York; Citigroup > New York; Walmart > Bentonville;
FedEx > Memphis; Ford > Dearborn; General Motors > Detroit; Procter & Gamble > Cincinnati; Target > Minneapolis;
McDonald's > Chicago; United Airlines > Chicago; Southwest Airlines > Dallas; AT&T > Dallas; Infosys > Bangalore;
Alibaba > Hangzhou; Tencent > Shenzhen; Huawei > Shenzhen; Baidu > Beijing; Qantas > Sydney; Emirates > Dubai
"""

PRODUCT_BY_COMPANY = """
Apple: iPhone, iPad, MacBook, iPod
Microsoft: Windows, Xbox, PowerPoint, Excel
Sony: PlayStation, Walkman
Nintendo: Game Boy, Wii, Super Mario Bros
Amazon: Kindle, Alexa
Google: Android, Gmail, Chromebook
Adobe: Photoshop, Acrobat
Ford: Mustang, Model T
Honda: Civic, Accord
Toyota: Corolla, Camry, Prius
Volkswagen: Beetle, Passat
Tesla: Model S, Cybertruck
Chevrolet: Corvette, Camaro
Nissan: Altima, Pathfinder
McDonald's: Big Mac, Happy Meal
Burger King: Whopper
Mattel: Barbie, Hot Wheels
Hasbro: Monopoly, Nerf
Intel: Pentium
Samsung: Galaxy Note
IBM: ThinkPad, OS/2
Boeing: 747, 787 Dreamliner
"""

ADJECTIVE_ANTONYM = """
hot > cold; big > small; fast > slow; good > bad; happy > sad; high > low; hard > soft; rich > poor; young > old; strong > weak;
light > dark; wet > dry; full > empty; open > closed; early > late; clean > dirty; long > short; wide > narrow; thick > thin;
loud > quiet; true > false; right > wrong; safe > dangerous; cheap > expensive; easy > difficult; alive > dead; brave > cowardly;
sharp > dull; rough > smooth; heavy > light; deep > shallow; sweet > bitter; tall > short; tight > loose; public > private;
guilty > innocent; male > female; positive > negative; active > passive; ancient > modern; real > fake; simple > complex;
asleep > awake; beautiful > ugly; polite > rude; generous > selfish; careful > careless; visible > invisible;
legal > illegal; possible > impossible; honest > dishonest; patient > impatient; regular > irregular; mature > immature;
north > south; left > right; inner > outer; upper > lower; major > minor
"""

OBJECT_SUPERCLASS = """
animal: dog, horse, elephant, tiger, cow, rabbit
bird: sparrow, eagle, pigeon, robin, owl
fish: salmon, tuna, trout, cod
insect: ant, bee, beetle, mosquito
fruit: apple, banana, orange, mango, peach
vegetable: carrot, broccoli, spinach, cabbage
tree: oak, maple, birch, willow
flower: rose, tulip, daisy, lily
furniture: chair, table, sofa, bookshelf
vehicle: car, truck, bus, motorcycle
clothing: shirt, jacket, sweater, trousers
tool: hammer, screwdriver, wrench, saw
musical instrument: guitar, piano, violin, trumpet
metal: iron, copper, gold, aluminum
sport: football, tennis, basketball, golf
weapon: sword, rifle, spear
building: castle, church, skyscraper
drink: coffee, tea, lemonade
color: red, purple, turquoise
"""

WORD_SENTIMENT = """
positive: happy, joyful, excellent, wonderful, love, delightful, brilliant, amazing, beautiful, success, victory, kind, friendly, \
grateful, hopeful, fantastic, superb, charming, cheerful, peaceful, generous, celebrate, win, praise, reward, smile, laugh, triumph
negative: sad, terrible, awful, hate, horrible, disgusting, ugly, failure, defeat, cruel, hostile, angry, hopeless, miserable, \
painful, dreadful, boring, gloomy, violent, selfish, mourn, lose, blame, punish, cry, disaster, nasty, tragic
"""

FRUIT_INSIDE_COLOR = """
white: apples, bananas, pears, coconuts, lychees, mangosteens, rambutans, soursops
red: watermelons, strawberries, cherries, raspberries, tomatoes, pomegranates, blood oranges
green: kiwis, limes, avocados, honeydew melons, green grapes, cucumbers
orange: mangoes, papayas, cantaloupes, apricots, persimmons, tangerines, pumpkins
yellow: pineapples, lemons, nectarines, star fruits, jackfruits
"""

FRUIT_OUTSIDE_COLOR = """
red: strawberries, cherries, raspberries, tomatoes, cranberries, pomegranates, lychees, redcurrants
yellow: bananas, lemons, pineapples, quinces, star fruits
green: limes, watermelons, honeydew melons, avocados, cucumbers, gooseberries, soursops
orange: tangerines, apricots, persimmons, pumpkins, clementines, kumquats
purple: plums, eggplants, mangosteens, grapes, figs
brown: coconuts, kiwis, tamarinds
blue: blueberries
"""

WORK_LOCATION = """
hospital: nurse, surgeon, doctor, midwife
school: teacher, principal
university: professor, lecturer
restaurant: waiter, chef, dishwasher
court: judge, lawyer, bailiff
farm: farmer, shepherd, milkmaid
laboratory: chemist, biologist, scientist
theater: actor, stagehand
church: priest, organist, pastor
bank: teller, loan officer
library: librarian
garage: mechanic
office: secretary, accountant, receptionist
kitchen: cook, baker
ship: sailor, captain
mine: miner
studio: painter, sculptor
prison: warden, jailer
museum: curator
pharmacy: pharmacist
hotel: concierge, bellhop
forest: lumberjack, ranger
bar: bartender
stadium: football player
circus: clown, acrobat
"""

TASK_DONE_BY_TOOL = """
cutting paper > scissors; driving nails > hammer; tightening screws > screwdriver; writing a letter > pen; digging a hole > shovel;
sweeping the floor > broom; cutting bread > knife; eating soup > spoon; brushing teeth > toothbrush; measuring temperature > thermometer;
telling the time > clock; taking photographs > camera; mopping the floor > mop; sawing wood > saw; sewing clothes > needle;
combing hair > comb; chopping wood > axe; ironing clothes > iron; weighing food > scale; measuring length > ruler;
seeing distant stars > telescope; seeing bacteria > microscope; catching fish > net; opening wine bottles > corkscrew;
unlocking a door > key; mowing the lawn > lawnmower; drilling holes > drill; calling a friend > phone; boiling water > kettle;
baking bread > oven; cleaning carpets > vacuum; finding north > compass; lighting candles > match; erasing pencil marks > eraser;
making toast > toaster; drying hair > hairdryer; painting walls > brush; raking leaves > rake; keeping food cold > refrigerator;
washing dishes > sponge
"""

TASK_PERSON_TYPE = """
flying airplanes > pilot; teaching students > teacher; baking bread > baker; cutting hair > barber; fixing pipes > plumber;
putting out fires > firefighter; treating sick people > doctor; treating sick animals > veterinarian; repairing cars > mechanic;
cleaning teeth > dentist; delivering mail > mailman; growing crops > farmer; catching criminals > police; writing books > author;
writing software > programmer; designing buildings > architect; painting portraits > artist; cutting meat > butcher;
serving food > waiter; cooking meals > chef; building houses > carpenter; wiring houses > electrician; sewing suits > tailor;
defending clients in court > lawyer; reporting the news > journalist; driving taxis > driver; catching fish > fisherman;
digging coal > miner; leading an orchestra > conductor; selling medicine > pharmacist; studying stars > astronomer;
making shoes > cobbler; caring for patients > nurse; lending books > librarian; training athletes > coach
"""

SUBSTANCE_PHASE = """
solid: iron, wood, gold, stone, glass, ice, copper, salt, sugar, silver, plastic, steel, diamond, concrete, aluminum, chalk, rubber, \
leather, granite, marble
liquid: water, milk, oil, gasoline, blood, vinegar, wine, honey, juice, mercury, alcohol, beer, coffee, syrup, bromine
gas: oxygen, nitrogen, helium, hydrogen, air, carbon dioxide, methane, neon, argon, chlorine, steam, ozone, propane, fluorine, ammonia
"""

OCCUPATION_AGE = """
young: lifeguard, babysitter, intern, fashion model, gymnast, cheerleader, rapper, waiter, barista, camp counselor, sprinter, \
dancer, cashier, DJ, video game tester, web developer, bartender, pop singer, skateboarder, surfer, flight attendant, snowboarder
old: judge, bishop, senator, professor, ambassador, historian, watchmaker, orchestra conductor, cardinal, shoemaker, diplomat, \
general, admiral, chairman, priest, tailor, prime minister, rabbi, philosopher, antiques dealer, abbot, chief justice
"""

OCCUPATION_GENDER = """
man: carpenter, mechanic, plumber, electrician, firefighter, construction worker, truck driver, soldier, miner, welder, engineer, \
blacksmith, bricklayer, lumberjack, butcher, sailor, roofer, mason, boxer, fisherman
woman: nurse, secretary, receptionist, nanny, housekeeper, librarian, kindergarten teacher, midwife, hairdresser, \
dental hygienist, florist, ballet dancer, flight attendant, babysitter, social worker, dietitian, seamstress, beautician, \
wedding planner, school counselor
"""

NAME_GENDER = """
man: James, Robert, Michael, William, Thomas, Charles, Daniel, Matthew, Anthony, Mark, Paul, Steven, Andrew, Kenneth, George, Kevin, \
Brian, Edward, Ronald, Peter
woman: Mary, Patricia, Jennifer, Linda, Elizabeth, Barbara, Susan, Jessica, Sarah, Karen, Nancy, Margaret, Sandra, Emily, Michelle, \
Carol, Amanda, Helen, Anna, Laura
"""

NAME_RELIGION = """
Christian: Christopher, Matthew, Luke, Peter, Paul, Mary, Christina, Theresa, Timothy, Benedict
Muslim: Muhammad, Ahmed, Fatima, Hassan, Omar, Ibrahim, Aisha, Mustafa, Abdullah, Khadija
Jewish: Moshe, Shlomo, Yitzhak, Rivka, Chaim, Menachem, Mordechai, Avraham
Hindu: Krishna, Lakshmi, Arjun, Ganesh, Vishnu, Rajesh, Suresh, Ramesh
"""

NAME_BIRTHPLACE = """
Germany: Hans, Jürgen, Wolfgang, Helga, Heinrich
Japan: Hiroshi, Takashi, Yuki, Kenji, Haruki
Russia: Vladimir, Dmitri, Svetlana, Boris, Natasha
Italy: Giovanni, Giuseppe, Luigi, Francesca, Paolo
France: Pierre, Jacques, François, Amélie, Thierry
India: Rajesh, Priya, Arjun, Sanjay, Deepika
China: Xiaoping, Ming, Jing
Ireland: Seamus, Siobhan, Declan, Liam
Sweden: Sven, Björn, Lars
Greece: Dimitrios, Stavros, Nikos
Poland: Wojciech, Agnieszka, Zbigniew
Spain: Javier, Pablo, Alejandro
Turkey: Mehmet, Emre, Recep
Nigeria: Ngozi, Chukwuemeka
"""

CHARACTERISTIC_GENDER = """
man: strong, aggressive, muscular, bearded, assertive, dominant, competitive, ambitious, brave, stoic, adventurous, tough, decisive, \
rugged, bold, bald
woman: gentle, nurturing, graceful, sensitive, caring, emotional, delicate, compassionate, elegant, affectionate, tender, \
soft-spoken, empathetic, pretty, warm, patient
"""

UNIV_DEGREE_GENDER = """
man: mechanical engineering, computer science, physics, electrical engineering, mathematics, finance, economics, philosophy, \
civil engineering, aerospace engineering, construction management, military science, petroleum engineering, theology, mining
woman: nursing, early childhood education, social work, fashion design, psychology, art history, dance, nutrition, literature, \
women's studies, speech therapy, interior design, library science, elementary education, occupational therapy
"""

WRITTEN: dict[str, list[Row]] = {
    "us state capital": paired(US_STATE_CAPITAL),
    "food from country": grouped(FOOD_FROM_COUNTRY),
    "landmark in country": grouped(LANDMARK_IN_COUNTRY),
    "person plays instrument": grouped(PERSON_PLAYS_INSTRUMENT),
    "company hq": paired(COMPANY_HQ),
    "product by company": grouped(PRODUCT_BY_COMPANY),
    "adjective antonym": paired(ADJECTIVE_ANTONYM),
    "object superclass": grouped(OBJECT_SUPERCLASS),
    "word sentiment": grouped(WORD_SENTIMENT),
    "fruit inside color": grouped(FRUIT_INSIDE_COLOR),
    "fruit outside color": grouped(FRUIT_OUTSIDE_COLOR),
    "work location": grouped(WORK_LOCATION),
    "task done by tool": paired(TASK_DONE_BY_TOOL),
    "task person type": paired(TASK_PERSON_TYPE),
    "substance phase of matter": grouped(SUBSTANCE_PHASE),
    "occupation age": grouped(OCCUPATION_AGE),
    "occupation gender": grouped(OCCUPATION_GENDER),
    "name gender": grouped(NAME_GENDER),
    "name religion": grouped(NAME_RELIGION),
    "name birthplace": grouped(NAME_BIRTHPLACE),
    "characteristic gender": grouped(CHARACTERISTIC_GENDER),
    "univ degree gender": grouped(UNIV_DEGREE_GENDER),
}
