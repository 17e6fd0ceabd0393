#!/bin/bash
# The many-domain matrix: pre-trainings, fine-tunings, page. Interrupted, it continues where it was.
# voc.yaml takes VOC from DETECTRON2_DATASETS. From the repository's root, after prepare.py, with BCCD and VOCdevkit (links will do) next to it:
#   examples/many_domains/run.sh IMAGENET_IMAGES CIFAR10_TEST_IMAGES
set -e
here=examples/many_domains

pretrain() {  # NAME CONFIG IMAGES EPOCHS [KEY VALUE ...]
    local out=domains/pretrain/$1 config=$2 images=$3 epochs=$4
    local checkpoint=$out/checkpoint_$(printf %04d "$epochs").pth
    shift 4
    [ -f "$checkpoint" ] || moco-transfer pretrain --resume --config-file "$config" \
        DATA.ROOT "$images" OUTPUT_DIR "$out" SOLVER.EPOCHS "$epochs" "$@"
    [ -f "$out/backbone.pkl" ] || moco-transfer convert "$checkpoint" "$out/backbone.pkl"
}

# Nearly 200 iterations of 64 images each for MoCo; two passes over CIFAR-10's 10,000 test images.
pretrain imagenet demo_moco "$1" 13
pretrain supervised demo_supervised "$2" 2 DATA.IMAGE_SIZE 32 DATA.AUGMENTATION supervised
while read -r domain epochs; do
    pretrain "$domain" demo_moco "domains/$domain/pool" "$epochs"
    moco-transfer benchmark --matrix "$here/$domain.yaml" --output "domains/runs/$domain"
done <<END
trees 22
nuclei 15
cells 5
voc 12
END
moco-transfer report domains/runs --baseline random --format html --output domains/report.html
