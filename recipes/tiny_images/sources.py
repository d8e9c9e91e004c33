"""What the sources of photographs label, as far as the training must know it; see SOURCES.md of their folder."""

# Sources that label all of one kind of object: "segment what this source labels" is a task there.
COMPLETE = frozenset(
    """
    animals badminton bananas banknotes bladder_mri blast_cells bottles brain_mri buildings_rf butterflies car_crash
    car_damage car_scratch cattle_head ccp_clothes cigarettes colonies corrosion crystals davis16 debris dental_xray
    desk_objects dogs_cats electronics embryos fire_smoke fire_trucks flakes floors food_a food_b foot_ulcer
    forest_clearings forest_sat granules hair_figaro hela home_goods humans knee_xray kudzu_bugs lung_xray
    machine_parts mandarins medical_waste mugs mushrooms pallets particles pets128 pigs pine_trunks plants ppe
    printed_boxes road_objects rocks solar_faults strawberries street_houses teachers trains vehicles_lm virus_tem
    waste_bottles wbc whiteboard young_plants
    """.split()
)
# Those of them whose kind cannot be told from the picture alone: others label something else in such pictures.
UNGUESSED = frozenset(
    """
    badminton car_damage car_scratch cigarettes corrosion electronics floors hair_figaro medical_waste ppe road_objects
    solar_faults
    """.split()
)
# A layer that labels this share of its pixels is a partition: what is not the region is known not to be it.
DENSE_SHARE = 0.9
