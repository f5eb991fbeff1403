"""The phrases of generated reports, as tables.

FINDINGS: factor → level → synonyms; every level of a factor has phrases of like length, so that a
report's length tells nothing. FILLERS: clauses that no factor has a say in; `{}` are filled with
random numbers and letters. The two share no telling word.
"""

CANCER_TYPE_PHRASES = {
    "BRCA": (
        "invasive ductal carcinoma of the breast",
        "infiltrating mammary duct carcinoma",
        "breast carcinoma of no special type",
        "primary carcinoma of mammary origin",
    ),
    "LUAD": (
        "adenocarcinoma of the lung, acinar",
        "pulmonary adenocarcinoma, TTF-1 positive",
        "lung adenocarcinoma of mixed pattern",
        "primary pulmonary glandular carcinoma",
    ),
    "KIRC": (
        "clear cell carcinoma of the kidney",
        "renal cell carcinoma, conventional type",
        "renal clear cell carcinoma, cortical",
        "primary kidney carcinoma of clear cells",
    ),
    "COAD": (
        "adenocarcinoma of the sigmoid colon",
        "colonic adenocarcinoma, usual type",
        "colorectal adenocarcinoma, cribriform",
        "primary large bowel adenocarcinoma",
    ),
    "LGG": (
        "diffuse glioma of the frontal lobe",
        "astrocytic tumour of the cerebrum",
        "infiltrating glioma, cerebral white matter",
        "primary glial neoplasm of the brain",
    ),
    "HNSC": (
        "squamous carcinoma of the oral tongue",
        "laryngeal squamous cell carcinoma",
        "oropharyngeal squamous carcinoma",
        "primary squamous carcinoma of the mouth",
    ),
    "SKCM": (
        "malignant melanoma of the skin",
        "cutaneous melanoma, nodular type",
        "melanoma with superficial spreading",
        "primary melanocytic skin malignancy",
    ),
    "UCEC": (
        "endometrioid carcinoma of the uterus",
        "endometrial carcinoma, endometrioid",
        "uterine corpus endometrial carcinoma",
        "primary carcinoma of the endometrium",
    ),
}
CANCER_TYPE_FRAMES = (
    "Diagnosis: {}.",
    "The sections show {}.",
    "Final diagnosis: {}.",
    "Histology is that of {}.",
)
FINDINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "grade": (
        (
            "The tumour is well differentiated.",
            "Histological grade: grade 1 (low grade).",
            "Nuclear grade I with uniform small nuclei.",
            "Low-grade cytology throughout.",
        ),
        (
            "The tumour is moderately differentiated.",
            "Histological grade: grade 2 (intermediate).",
            "Nuclear grade II with some variation.",
            "Intermediate-grade cytology throughout.",
        ),
        (
            "The tumour is poorly differentiated.",
            "Histological grade: grade 3 (high grade).",
            "Nuclear grade III with marked pleomorphism.",
            "High-grade cytology throughout.",
        ),
    ),
    "mutation": (
        (
            "p53 immunostain shows a wild-type pattern.",
            "No pathogenic TP53 variant is detected.",
            "Sequencing of TP53: unaltered.",
            "p53 staining is weak and heterogeneous, as is normal.",
        ),
        (
            "p53 immunostain shows a mutant pattern.",
            "A pathogenic TP53 variant is detected.",
            "Sequencing of TP53: missense mutation.",
            "p53 staining is diffuse and aberrant, overexpressed.",
        ),
    ),
    "pathway": (
        (
            "CA IX is expressed in scattered cells only.",
            "Hypoxia markers: barely expressed.",
            "GLUT1 immunoreactivity is minimal.",
            "The hypoxia signature is scored low.",
        ),
        (
            "CA IX is expressed in about half of the cells.",
            "Hypoxia markers: moderately expressed.",
            "GLUT1 immunoreactivity is patchy.",
            "The hypoxia signature is scored medium.",
        ),
        (
            "CA IX is expressed in nearly all of the cells.",
            "Hypoxia markers: intensely expressed.",
            "GLUT1 immunoreactivity is extensive.",
            "The hypoxia signature is scored high.",
        ),
    ),
    "hazard": (
        (
            "Lymphovascular invasion is absent.",
            "Vascular spaces are free of tumour.",
            "Tumour emboli are not found.",
        ),
        (
            "Lymphovascular invasion is focal.",
            "Vascular spaces hold a tumour cluster.",
            "Tumour emboli are doubtful.",
        ),
        (
            "Lymphovascular invasion is prominent.",
            "Vascular spaces are filled by tumour.",
            "Tumour emboli are numerous.",
        ),
    ),
}
HEADERS = (
    "SURGICAL PATHOLOGY REPORT\nPatient: [REDACTED]  Accession: {l}{nn}-{nn}{nn}\n",
    "DEPARTMENT OF PATHOLOGY\nFinal report   Case no. {nn}{l}{nn}{nn}\n",
    "Pathology Report\nName: [REDACTED]   Date received: [REDACTED]\n",
    "HISTOPATHOLOGY\nSpecimen no. {nn}-{nn}{nn}   Page 1 of {n}\n",
)
FILLERS = (
    "Received fresh, labelled with the patient's name and number.",
    "The specimen measures {n}.{n} x {n}.{n} x {n}.{n} cm.",
    "The specimen weighs {nn}{n} g.",
    "The specimen is oriented with sutures by the surgeon.",
    "The outer surface is inked black.",
    "Representative sections are submitted in cassettes {l}1 to {l}{n}.",
    "Cassette {l}{n}: margin of resection, en face.",
    "The cut surface is tan-white and firm.",
    "The resection margin is clear by {n} mm.",
    "The closest margin lies {n}.{n} mm away.",
    "Clinical history: mass noted {n} months ago.",
    "Clinical history is available in the chart.",
    "The patient is in the {decade} decade of life.",
    "A previous biopsy (see {nn}-{nn}{nn}) was reviewed.",
    "Frozen section was performed on part {l}.",
    "The frozen section agrees with the permanent section.",
    "Fixation time was {nn} hours in buffered formalin.",
    "Time from removal to fixation: {nn} minutes.",
    "CD34 immunostain: {pn}.",
    "S100 immunostain: {pn}.",
    "Desmin immunostain: {pn}.",
    "Chromogranin immunostain: {pn}.",
    "PAS stain for fungal organisms: {pn}.",
    "Controls react as they should.",
    "Background stroma is fibrous with a few lymphocytes.",
    "Chronic inflammation is mild.",
    "Focal haemorrhage from the procedure is present.",
    "Calcifications are {seen}.",
    "A cyst of {n} mm is found nearby.",
    "{n} lymph nodes are recovered from the fat.",
    "The largest node measures {n}.{n} cm.",
    "Adjacent tissue is unremarkable.",
    "Levels were cut on block {l}{n}.",
    "The case was shown at the weekly conference.",
    "This test was developed by the laboratory and is for clinical use.",
    "Slides were reviewed by two pathologists.",
    "Photographs were taken of the gross specimen.",
    "The findings were communicated by telephone.",
    "Material is kept for further study on request.",
    "Billing codes are listed on the requisition.",
)
CHOICES = {
    "{pn}": ("positive", "negative"),
    "{seen}": ("present", "not seen"),
    "{decade}": ("fifth", "sixth", "seventh", "eighth"),
}
"""Slots that take one of a few words."""

OCR_CONFUSIONS = {
    "l": "1", "1": "l", "O": "0", "0": "O", "e": "c", "c": "e", "m": "rn", "u": "ii", "i": "j",
    "a": "o", "n": "ri", "h": "b", "t": "f", "S": "5", "5": "S", "B": "8", "g": "q", " ": "  ",
    ".": ",", "d": "cl", "v": "y", "r": "n",
}  # fmt: skip
