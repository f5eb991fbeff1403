"""The genes of a generated cohort: which follow which factor, and in which direction.

Symbols are real as far as the lists reach, then GENE0001 and so on; a planted set bears genes that
a reader would expect, but what they do here is planted, not biology. In every set half of the genes
go up and half go down, in pairs of equal abundance, so that the library size tells nothing. Sets
share no gene.
"""

from dataclasses import dataclass

from mstar.cohorts.generated.config import GenerateConfig

FACTOR_GENES = {
    "mutation": (
        "CDKN1A MDM2 BAX FAS BBC3 GADD45A SESN1 TP53I3 RRM2B XPC"
        " DDB2 ZMAT3 TNFRSF10B PHLDA3 AEN CCNG1 FDXR POLH TIGAR SPATA18"
    ),
    "grade": (
        "MKI67 TOP2A AURKA AURKB BUB1 CCNB1 CCNB2 CDK1 CENPA FOXM1"
        " PLK1 TPX2 UBE2C BIRC5 MCM2 PCNA TYMS RRM2 KIF11 NUSAP1"
    ),
    "pathway": (
        "CA9 SLC2A1 VEGFA LDHA PGK1 ENO1 ADM NDRG1 BNIP3 P4HA1"
        " HK2 ALDOA PFKP TPI1 MIF ANGPTL4 EGLN3 PDK1 ANKRD37 KDM3A"
    ),
    "hazard": "MMP1 MMP9 SPP1 SERPINE1 COL11A1 LOX PLAUR FN1 POSTN THBS2",
}
TYPE_GENES = {
    "BRCA": "ESR1 GATA3 TFF1 PGR XBP1 FOXA1 SCGB2A2 MLPH AGR3 ANKRD30A",
    "LUAD": "NKX2-1 SFTPB SFTPC NAPSA SFTA2 SLC34A2 SCGB3A2 ROS1 LMO3 AGER",
    "KIRC": "PAX8 PAX2 NDUFA4L2 CUBN UMOD SLC17A3 FABP7 CDH16 AQP1 KCNJ1",
    "COAD": "CDX2 VIL1 CDH17 LGR5 MUC2 GUCY2C KRT20 LGALS4 PHGR1 TFF3",
    "LGG": "GFAP OLIG2 SOX2 PTPRZ1 NCAN BCAN OLIG1 S100B AQP4 GPM6A",
    "HNSC": "KRT5 KRT14 TP63 SOX15 DSG3 KRT6A PKP1 SERPINB5 KRT16 CLCA2",
    "SKCM": "MLANA PMEL TYR DCT SOX10 MITF TYRP1 GPR143 S100A1 CSPG4",
    "UCEC": "MSX1 SOX17 EMX2 HOXB13 DLX5 PAEP MMP26 SCGB1D2 OVGP1 HOXA10",
}
OTHER_GENES = (
    "ACTB GAPDH B2M TUBB RPLP0 RPL13A RPS18 HPRT1 TBP UBC YWHAZ SDHA HMBS GUSB TFRC PPIA"
    " EEF1A1 EEF2 RPL3 RPL4 RPL5 RPL7 RPL8 RPL10 RPL11 RPS2 RPS3 RPS4X RPS6 RPS8 HSP90AB1"
    " HSPA8 HSPA5 CALM1 CALM2 CFL1 PFN1 TMSB4X TMSB10 ACTG1 TUBA1B TUBA1A VIM LMNA FLNA MYL6"
    " MYL9 TPM1 TPM2 ACTA2 TAGLN COL1A1 COL1A2 COL3A1 COL4A1 COL4A2 COL5A1 COL6A1 COL6A2"
    " COL6A3 SPARC LUM DCN BGN FBLN1 THY1 PDGFRB CD34 PECAM1 VWF CDH5 KDR FLT1 TEK CD3D CD3E"
    " CD3G CD4 CD8A CD8B CD19 CD79A MS4A1 CD27 CD28 CTLA4 PDCD1 CD274 LAG3 TIGIT HAVCR2 FOXP3"
    " IL2RA IL7R CCR7 SELL GZMA GZMB GZMK PRF1 NKG7 GNLY KLRD1 NCAM1 CD14 CD68 CD163 CSF1R"
    " ITGAM ITGAX FCGR3A LYZ S100A8 S100A9 IL1B IL6 IL10 TNF CXCL8 CXCL9 CXCL10 CXCL12 CXCR4"
    " CCL2 CCL5 IFNG STAT1 STAT3 JAK1 JAK2 IRF1 IRF7 ISG15 MX1 OAS1 HLA-A HLA-B HLA-C HLA-DRA"
    " HLA-DRB1 HLA-E CD74 TAP1 PSMB8 PSMB9 EGFR ERBB2 ERBB3 MET KIT PDGFRA FGFR1 FGFR2 FGFR3"
    " IGF1R INSR KRAS NRAS HRAS BRAF RAF1 MAP2K1 MAPK1 MAPK3 PIK3CA PIK3R1 PTEN AKT1 AKT2 MTOR"
    " TSC1 TSC2 RPS6KB1 MYC MYCN MAX RB1 E2F1 CCND1 CCND2 CCNE1 CDK2 CDK4 CDK6 CDKN1B CDKN2A"
    " CDKN2B TP53 ATM ATR CHEK1 CHEK2 BRCA1 BRCA2 RAD51 PALB2 MLH1 MSH2 MSH6 PMS2 APC CTNNB1"
    " AXIN1 AXIN2 TCF7L2 NOTCH1 NOTCH2 HES1 JAG1 SMAD2 SMAD3 SMAD4 TGFB1 TGFBR1 TGFBR2 BMP4"
    " SHH PTCH1 SMO GLI1 WNT5A CDH1 CDH2 EPCAM KRT7 KRT8 KRT18 KRT19 MUC1 CLDN3 CLDN4 CLDN7"
    " OCLN ZEB1 ZEB2 SNAI1 SNAI2 TWIST1 ARID1A SMARCA4 SMARCB1 KMT2D KMT2C EZH2 DNMT1 DNMT3A"
    " TET2 IDH1 IDH2 HDAC1 EP300 CREBBP BRD4 SOD1 SOD2 CAT GPX1 NQO1 HMOX1 KEAP1 NFE2L2 FASN"
    " ACACA SCD HMGCR LDLR SREBF1 PPARG CPT1A CS FH"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gene:
    """One gene.

    factor: mutation, grade, pathway, hazard, a cancer type's code, or empty.
    direction: +1 rises with the factor, -1 falls, 0 has none.
    pair: genes of one pair are equally abundant.
    """

    symbol: str
    factor: str
    direction: int
    pair: int


def genes_of(config: GenerateConfig) -> tuple[Gene, ...]:
    """`num_genes` genes: the planted sets of the types that there are, then the rest."""
    sets = {
        **FACTOR_GENES,
        **{code: TYPE_GENES[code] for code in config.cancer_types},
    }
    planted = [
        Gene(symbol=symbol, factor=factor, direction=1 - 2 * (place % 2), pair=place // 2)
        for factor, symbols in sets.items()
        for place, symbol in enumerate(symbols.split())
    ]
    rest = [
        Gene(symbol=symbol, factor="", direction=0, pair=place)
        for place, symbol in enumerate(_other_symbols(config.num_genes - len(planted)))
    ]
    return tuple(sorted([*planted, *rest], key=lambda gene: gene.symbol))


def _other_symbols(count: int) -> list[str]:
    real = OTHER_GENES.split()[:count]
    return real + [f"GENE{number:04d}" for number in range(1, count - len(real) + 1)]
