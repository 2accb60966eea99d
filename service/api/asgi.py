"""What uvicorn serves: the API with the settings of the environment."""

from service.api.app import create_app
from service.settings import get_settings

app = create_app(get_settings())
