"""nvmet_p2p: an NVMe over Fabrics target that stages data in a drive's Controller Memory Buffer."""
