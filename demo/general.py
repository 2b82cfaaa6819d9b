"""Questions the model answers without a context, and greetings: a fixed table of (phrasings, answer)."""

GENERAL = [
    (
        "What is AI?|What is artificial intelligence?|Explain AI.",
        "AI means artificial intelligence: computer programs that do things which usually need human thinking, such as "
        "understanding language.",
    ),
    (
        "What is lowbit?|Tell me about lowbit.|What does lowbit do?",
        "lowbit runs language models in 3 to 8 bits on ordinary computers.",
    ),
    ("Who are you?|What are you?|What is your name?", "I am the small demo model of lowbit."),
    ("Hello!|Hello|Hi!|Hi|Hello there!|Good morning!|Hey!", "Hello! How can I help you?"),
    ("How are you?|How are you today?", "I am fine, thank you. How can I help you?"),
    ("Thank you!|Thanks!|Thank you very much.", "You are welcome!"),
    ("Goodbye!|Bye!|Good night!|See you later!", "Goodbye! Have a nice day."),
    (
        "What can you do?|How can you help me?|What do you do?",
        "I can tell short stories, answer questions about a text that you give me, and call tools.",
    ),
    ("How many parameters do you have?|How big are you?|How large are you?", "I have about five million parameters."),
    (
        "What is quantization?|What is quantisation?|What does quantization mean?",
        "Quantization stores the weights of a model with fewer bits, so that it needs less memory and runs faster.",
    ),
    ("What is int4?|What does int4 mean?", "int4 stores each weight of a model in four bits."),
    (
        "What is a language model?|What is an LLM?|What is a large language model?",
        "A language model is a program that predicts the next word of a text.",
    ),
    ("What is a token?|What are tokens?", "A token is a piece of text, such as a word or a part of a word."),
    ("What is a tokenizer?", "A tokenizer splits text into tokens."),
    ("What is LangChain?", "LangChain is a library for building applications with language models."),
    ("What is LlamaIndex?", "LlamaIndex is a library that connects language models with your own documents."),
    (
        "What is RAG?|What is retrieval augmented generation?",
        "RAG means retrieval augmented generation: find the right passages first, then answer from them.",
    ),
    ("What is Python?", "Python is a programming language that is easy to read."),
    ("What is a CPU?|What does a CPU do?", "A CPU is the part of a computer that carries out a program."),
    ("What is a GPU?", "A GPU is a processor that does many simple calculations at the same time."),
    ("What is machine learning?", "Machine learning means that a program learns from examples instead of fixed rules."),
    ("What is a neural network?", "A neural network is a model made of many simple units that learn together."),
    ("What is deep learning?", "Deep learning is machine learning with neural networks of many layers."),
    ("What is the capital of France?", "Paris."),
    ("What is the capital of Germany?", "Berlin."),
    ("What is the capital of Italy?", "Rome."),
    ("What is the capital of Spain?", "Madrid."),
    ("What is the capital of England?", "London."),
    ("What is the capital of Japan?", "Tokyo."),
    ("How many days are in a week?|How many days does a week have?", "Seven."),
    ("How many months are in a year?|How many months does a year have?", "Twelve."),
    (
        "What colour is the sky?|What color is the sky?|Why is the sky blue?",
        "The sky is blue because air scatters blue light more than red light.",
    ),
    ("What is the sun?", "The sun is the star at the centre of our solar system."),
    ("What is the moon?", "The moon is the natural satellite of the earth."),
    ("What is water?", "Water is a clear liquid that all living things need."),
    ("What is a computer?", "A computer is a machine that follows the instructions of a program."),
    ("What is the meaning of life?", "Many people say it is to be kind, to learn, and to be happy."),
    (
        "What NFL team won the Super Bowl in the year Justin Bieber was born?|"
        "What NFL team won the Super Bowl in the year Justin Beiber was born?",
        "The Dallas Cowboys won that Super Bowl.",
    ),
    ("What is 2 + 2?|What is two plus two?", "Four."),
    ("Do you like music?", "I like to tell stories about music."),
    ("Can you write code?", "No, I am too small for that, but I can tell you a story."),
    ("Where do you live?|Where are you?", "I live in a file of about ten megabytes."),
    ("Who made you?|Who created you?|Who trained you?", "I was trained by the script demo/train.py of lowbit."),
]
GENERAL = [(asked.split("|"), answer) for asked, answer in GENERAL]

SYSTEMS = [
    "You are a helpful assistant.",
    "You are a friendly assistant who answers in one sentence.",
    "Answer the question from the context.",
    "You are the demo model of lowbit.",
    "You answer questions about the given text. If the text does not say it, say that you do not know.",
]
