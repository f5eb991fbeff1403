"""Grid and feature files, the stores that hold them, and exchange with the field's other tools.

files     one HDF5 per slide: where its patches are and what the encoder made of them
hdf5      opening, checked reading and deterministic writing of HDF5, for files and layouts
store     a folder (or bucket prefix) of such files under one configuration
parts     finished pieces of a slide that is not complete yet
layouts   the file layouts of CLAM, mSTAR/PrePATH, TRIDENT and STAMP
exchange  whole stores to and from those layouts
"""
