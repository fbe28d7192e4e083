from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="raftd",
    # The version comes from raftd/_version.py.
    use_incremental=True,
    description="A replicated key-value server, and a Raft library, on Twisted",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the raftd authors",
    license="MIT",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Database",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    # twisted.plugins holds the one module that makes `twist` know us; it is no
    # package of ours, and has no __init__.py.
    packages=[*find_packages(include=["raftd", "raftd.*"]), "twisted.plugins"],
    # With this, an editable install puts the checkout itself on the path, where
    # Twisted looks for plugins; without it, setuptools maps single packages.
    package_dir={"": "."},
    package_data={"raftd": ["py.typed"]},
    entry_points={
        "console_scripts": [
            "raftd = raftd.tap:main",
            "raftd-rescue = raftd.rescue:main",
            "raftctl = raftd.ctl.main:main",
        ],
    },
    python_requires=">=3.10",
    # The oldest with which the tests pass on Python 3.10 and on 3.13.
    install_requires=[
        "twisted>=24.7",  # before it, trial does not wait for cleanups that are coroutines
        "treq>=24.9.1",  # earlier ones import cgi, which went with Python 3.13
        "incremental>=24.7.2",  # as the build
        "msgspec>=0.19",  # the first that is built for Python 3.13
        "httptools>=0.6.4",  # 0.6.2 lets malformed requests through
    ],
    extras_require={
        "test": ["hypothesis", "pexpect"],
        "dev": [
            "build",
            "hypothesis",
            "mypy",
            "mypy-zope",
            "pexpect",
            "ruff",
            "schemathesis",
            "towncrier",
            "types-pexpect",
        ],
    },
)
