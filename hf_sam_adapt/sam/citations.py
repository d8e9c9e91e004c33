"""How to cite the SAMs, in BibTeX."""

SAM = """\
@inproceedings{kirillov2023segment,
  title = {Segment Anything},
  author = {Kirillov, Alexander and Mintun, Eric and Ravi, Nikhila and Mao, Hanzi and Rolland, Chloe and Gustafson,
            Laura and Xiao, Tete and Whitehead, Spencer and Berg, Alexander C. and Lo, Wan-Yen and Doll{\\'a}r, Piotr
            and Girshick, Ross},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year = {2023}
}"""
SAM_HQ = """\
@inproceedings{ke2023segment,
  title = {Segment Anything in High Quality},
  author = {Ke, Lei and Ye, Mingqiao and Danelljan, Martin and Liu, Yifan and Tai, Yu-Wing and Tang, Chi-Keung and Yu,
            Fisher},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}"""
SAM2 = """\
@inproceedings{ravi2025sam,
  title = {{SAM} 2: Segment Anything in Images and Videos},
  author = {Ravi, Nikhila and Gabeur, Valentin and Hu, Yuan-Ting and Hu, Ronghang and Ryali, Chaitanya and Ma, Tengyu
            and Khedr, Haitham and R{\\"a}dle, Roman and Rolland, Chloe and Gustafson, Laura and Mintun, Eric and Pan,
            Junting and Alwala, Kalyan Vasudev and Carion, Nicolas and Wu, Chao-Yuan and Girshick, Ross and
            Doll{\\'a}r, Piotr and Feichtenhofer, Christoph},
  booktitle = {International Conference on Learning Representations},
  year = {2025}
}"""
SAM3 = """\
@article{carion2025sam,
  title = {{SAM} 3: Segment Anything with Concepts},
  author = {Carion, Nicolas and Gustafson, Laura and Hu, Yuan-Ting and Debnath, Shoubhik and Hu, Ronghang and Suris,
            Didac and Ryali, Chaitanya and Alwala, Kalyan Vasudev and others},
  journal = {arXiv preprint arXiv:2511.16719},
  year = {2025}
}"""
