"""Label tables from the files that data sets publish: one derivation per kind of endpoint.

    derivations.csv        task → derivation, data set, arguments
    derive.py              the derivations: mutation, burden, survival, category, cancer_type
    attributes.py          which column says it, and which value is which class
    endpoints.py           which columns hold an endpoint's time and status
    datasets.py            where the files of a data set lie, and what their ids are
    sources.py, xlsx.py    those files, as tables of text
    mutations.py           MAF, streamed; tables of mutations per gene; lists of sequenced samples
    population.py          cases and slides that may be labelled

Nothing is guessed and nothing is dropped in silence: a case without a label has a reason, and
reasons are counted.
"""
