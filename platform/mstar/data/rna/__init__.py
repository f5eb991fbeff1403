"""Gene expression: from the tables the field hands around to rows a gene encoder takes.

config        what may be stated about a table, and what is done with what it lacks
layout        which way round a matrix lies, and which of its columns are what
matrix        a matrix in blocks, whatever its format; text_matrix (with cells) and parquet_matrix
              read them
genes         one name per gene; rows that share it are merged by a stated rule
scale         units and logarithms: known or stated, checked against the numbers, never guessed
collect       blocks checked (cell_checks), made linear and set aside on disk (scratch)
expression    `preprocess_expression`: tables in, an expression store out (store_writer) and what
              became of them (summary), in bounded memory
store         `ExpressionStore`: log1p'd rows by case, memory-mapped
align         rows in the gene order of a trained encoder
binning       values → token ids as scBERT-style models take them
gene_vectors  Gene2Vec files and gene lists
"""
