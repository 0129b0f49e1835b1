"""What is ordered: filled in from the settings, options as the service has them, everything wrong found at once."""

import pytest
from pydantic import SecretStr

from helpers import hook_order
from helpers.errors import NotConfigured, Rejected
from helpers.hook_order import Option

L1C = "S2A_MSIL1C_20230910T050701_N0509_R019_T47VLH_20230910T074321.SAFE"
GRD = "S1A_IW_GRDH_1SDV_20230910T054256_20230910T054321_050261_060CD9_BF21.SAFE"


def option(name, kind="str", default=None, choices=(), required=True):
    return Option(name, kind, default, tuple(choices), required, f"what {name} is")


#: data-harvest, as the service describes it: everything "required".
HARVEST = [
    option("output_storage", choices=("PRIVATE", "TEMPORARY")),
    *map(option, ("output_s3_endpoint_url", "output_s3_access_key", "output_s3_secret_key", "output_s3_path")),
    option("source_type", default="EXTERNAL", choices=("DESP", "EXTERNAL")),
    option("source_catalogue_api_url"),
    option("source_catalogue_api_type", choices=("STAC", "ODATA")),
    option("source_token_url"),
    option("source_grant_type", default="PASSWORD", choices=("PASSWORD", "CLIENT_CREDENTIALS")),
    *map(option, ("source_username", "source_password", "source_client_id")),
    option("source_client_secret", required=False),
    option("source_catalogue_collection", required=False),
    *map(option, ("desp_source_username", "desp_source_password", "desp_source_collection")),
]
MAJA = [option("output_storage", choices=("PRIVATE", "TEMPORARY")), option("input_type"), option("timespan", "int")]


@pytest.fixture
def fill_in(settings):
    return lambda **asked: hook_order.fill_in(settings, **({"run_id": "one"} | asked))


def order(values: dict, products=(L1C,)) -> dict:
    options = [{"Name": name, "Value": value} for name, value in values.items()]
    return {"Name": "n", "WorkflowName": "w", "IdentifierList": list(products), "WorkflowOptions": options}


# --- filling in ---


def test_nothing_asked_for_is_the_tutorials_order(fill_in):
    wanted = fill_in()
    assert (wanted.workflow, wanted.products, wanted.storage, wanted.source_type) == (
        "data-harvest", [L1C], "TEMPORARY", "DESP"
    )  # fmt: skip
    assert wanted.collection == "EO.ESA.DAT.SENTINEL-2.MSI.L1C"
    assert (wanted.bucket, wanted.prefix) == ("", "")


@pytest.mark.parametrize(("products", "collection"), [
    ([GRD], "EO.ESA.DAT.SENTINEL-1.L1_GRD"),
    (["S1A_IW_SLC__1SDV_20240121T155314_20240121T155341_052207_064FA6_3AB9"], "EO.ESA.DAT.SENTINEL-1.L1_SLC"),
    ([L1C.replace("L1C", "L2A")], "EO.ESA.DAT.SENTINEL-2.MSI.L2A"),
    ([GRD, L1C], ""),
    (["Custom Hook"], ""),
])  # fmt: skip
def test_the_collection_is_told_from_the_products_names(fill_in, products, collection):
    assert fill_in(products=products).collection == collection


def test_parameters_win_over_settings_and_settings_over_defaults(settings):
    own = settings.model_copy(
        update={"hook_is_private_storage": True, "hook_output_bucket": "of-the-file", "hook_order_name": "jane"}
    )
    wanted = hook_order.fill_in(own, run_id="one", workflow="maja")
    assert (wanted.storage, wanted.bucket, wanted.prefix) == ("PRIVATE", "of-the-file", "dedl-maja-jane")
    assert hook_order.fill_in(own, run_id="one", bucket="of-the-cell", prefix="/a/b/").prefix == "a/b"
    assert hook_order.fill_in(own, run_id="one", storage="TEMPORARY").bucket == ""


@pytest.mark.parametrize(("products", "said"), [
    (["A.SAFE", ""], "product 2 is empty: a comma too many"),
    (["  "], "product 1 is empty"),
    ([" A.SAFE"], "has blanks around it"),
    (["A.SAFE", "B.SAFE", "A.SAFE"], "product 3 'A.SAFE' is product 1 again"),
    (["your-product"], "still the example's placeholder"),
])  # fmt: skip
def test_products_that_would_cost_quota_for_nothing_are_refused(fill_in, products, said):
    with pytest.raises(Rejected, match=said):
        fill_in(products=products)


def test_a_live_run_orders_no_example(settings):
    live = settings.model_copy(update={"backend": "live"})
    with pytest.raises(Rejected, match="there are no products: set `products`"):
        hook_order.fill_in(live, run_id="one")
    assert hook_order.fill_in(live, run_id="one", products=[L1C]).products == [L1C]


def test_a_service_account_is_not_enough_where_the_source_wants_a_user(settings):
    robot = {"desp_username": None, "desp_password": None, "dedl_client_id": "r", "dedl_client_secret": SecretStr("s")}
    robot = settings.model_copy(update=robot)
    with pytest.raises(NotConfigured, match="DESP_USERNAME"):
        hook_order.fill_in(robot, run_id="one")
    assert hook_order.fill_in(robot, run_id="one", workflow="maja").workflow == "maja"


def test_a_trailing_comma_in_the_settings_is_not_ordered(settings):
    with pytest.raises(Rejected, match="product 2 is empty"):
        hook_order.fill_in(settings.model_copy(update={"hook_data_id": f"{L1C},"}), run_id="one")


@pytest.mark.parametrize("bucket", ["", "your-bucket-name", "a", "with/slash", "s3://mine"])
def test_a_private_order_needs_a_bucket(fill_in, bucket):
    with pytest.raises(Rejected, match="no name of a bucket" if bucket else "needs a bucket of yours"):
        fill_in(storage="PRIVATE", bucket=bucket)


def test_everything_wrong_is_told_at_once(settings):
    bare = settings.model_copy(update={"hook_output_storage_access_key": None, "hook_external_token_url": None})
    with pytest.raises(NotConfigured) as error:
        hook_order.fill_in(bare, run_id="one", storage="PRIVATE", source_type="EXTERNAL", products=[""])
    for words in ("HOOK_OUTPUT_STORAGE_ACCESS_KEY", "HOOK_EXTERNAL_TOKEN_URL", "product 1 is empty", "needs a bucket"):
        assert words in str(error.value)


# --- options ---


def test_both_forms_of_choices_are_understood():
    forms = [
        [{"value": "PRIVATE", "condition": None}, {"value": "TEMPORARY", "condition": None}],
        ["PRIVATE", "TEMPORARY"],
        None,
    ]
    raw = [{"Name": "a", "Type": "str", "Default": None, "Value": form, "Required": True} for form in forms]
    found = hook_order.options_of({"value": [{"Name": "w", "WorkflowOptions": raw}]}, "w")
    assert [one.choices for one in found] == [("PRIVATE", "TEMPORARY"), ("PRIVATE", "TEMPORARY"), ()]


def test_a_workflow_that_is_not_there_is_named_with_what_is():
    with pytest.raises(Rejected, match=r"no workflow 'maia'. Did you mean maja\?"):
        hook_order.options_of({"value": [{"Name": "maja"}, {"Name": "lai"}]}, "maia")
    with pytest.raises(Rejected, match="There are: none"):
        hook_order.options_of({"value": []}, "maia")


def test_an_order_from_the_data_lake_has_what_it_needs_and_masks_the_password(fill_in, settings):
    values = hook_order.option_values(fill_in(), settings, HARVEST)
    assert set(values) == {
        "output_storage", "source_type", "desp_source_username", "desp_source_password", "desp_source_collection"
    }  # fmt: skip
    assert settings.desp_password.get_secret_value() not in repr(order(values))
    hook_order.check(order(values), HARVEST)


def test_a_private_order_brings_the_storage_along(fill_in, settings):
    values = hook_order.option_values(fill_in(storage="PRIVATE", bucket="mine", prefix="a/b"), settings, HARVEST)
    assert values["output_s3_path"] == "s3://mine/a/b"
    assert values["output_s3_endpoint_url"] == str(settings.hook_output_storage_url).rstrip("/")
    secret = settings.hook_output_storage_secret_key.get_secret_value()
    assert secret not in repr(values) and secret not in repr(hook_order.without_secrets(order(values)))
    assert secret in repr(hook_order.with_secrets(order(values)))
    hook_order.check(order(values), HARVEST)


@pytest.mark.parametrize("grant", ["PASSWORD", "CLIENT_CREDENTIALS"])
def test_an_order_from_outside_logs_in_there(fill_in, settings, grant):
    if grant == "CLIENT_CREDENTIALS":
        client = {"hook_external_username": None, "hook_external_password": None}
        settings = settings.model_copy(update=client | {"hook_external_client_secret": SecretStr("of-the-client")})
    wanted = hook_order.fill_in(settings, run_id="one", source_type="EXTERNAL")
    values = hook_order.option_values(wanted, settings, HARVEST)
    assert values["source_grant_type"] == grant
    assert ("source_username" in values) == (grant == "PASSWORD")
    hook_order.check(order(values), HARVEST)


def test_a_hook_without_source_takes_none(fill_in, settings):
    values = hook_order.option_values(fill_in(workflow="maja"), settings, MAJA, {"input_type": "X", "timespan": 18})
    assert values == {"output_storage": "TEMPORARY", "input_type": "X", "timespan": 18}


def test_a_hook_that_reads_from_a_storage_reads_from_ours(fill_in, settings):
    names = ("source_s3_path", "source_s3_endpoint_url", "source_s3_access_key", "source_s3_secret_key")
    values = hook_order.option_values(fill_in(), settings, [option(n) for n in names], {"source_s3_path": "s3://a/b"})
    assert values["source_s3_secret_key"] == settings.hook_output_storage_secret_key


def test_numbered_options_belong_to_the_workflow_of_the_settings(settings):
    own = settings.model_copy(update={"hook_workflow": "maja", "hook_additional": {"timespan": 24}})
    for workflow, expected in {"maja": 24, "lai": None}.items():
        wanted = hook_order.fill_in(own, run_id="one", workflow=workflow)
        assert hook_order.option_values(wanted, own, MAJA).get("timespan") == expected
    wanted = hook_order.fill_in(own, run_id="one")
    assert hook_order.option_values(wanted, own, MAJA, {"timespan": 48})["timespan"] == 48


# --- checking ---


def problems(values, known, products=(L1C,)) -> str:
    with pytest.raises(Rejected) as error:
        hook_order.check(order(values, products), known)
    return str(error.value)


def test_required_is_meant_for_one_storage_and_one_source():
    temporary = {"output_storage": "TEMPORARY", "source_type": "DESP"}
    desp = {"desp_source_username": "u", "desp_source_password": SecretStr("p"), "desp_source_collection": "c"}
    hook_order.check(order(temporary | desp), HARVEST)
    said = problems(temporary, HARVEST)
    assert all(name in said for name in desp) and "output_s3" not in said and "source_token_url" not in said
    said = problems({"output_storage": "PRIVATE", "source_type": "DESP"} | desp, HARVEST)
    assert said.count("output_s3_") == 8  # four names, each with its description
    said = problems({"output_storage": "TEMPORARY"}, HARVEST)  # without a source type it is EXTERNAL
    assert "source_token_url" in said and "desp_source_username" not in said


@pytest.mark.parametrize(("values", "said"), [
    ({"timespam": 3}, "option 'timespam': the workflow has none of this name. Did you mean timespan?"),
    ({"output_storage": "private"}, "'private' is none of PRIVATE, TEMPORARY"),
    ({"timespan": "18"}, "expected int, got '18'"),
    ({"timespan": True}, "expected int, got True"),
    ({"timespan": 1.5}, "expected int, got 1.5"),
    ({"input_type": "your-type"}, "has a placeholder of the example in it"),
    ({"input_type": "https://identity.XXXX/auth"}, "has a placeholder"),
    ({"input_type": "s3://your-bucket-name/x"}, "has a placeholder"),
    ({"input_type": SecretStr("your-secret-key")}, "option 'input_type': still the example's placeholder"),
])  # fmt: skip
def test_values_that_cannot_work_are_found(values, said):
    good = {"output_storage": "TEMPORARY", "input_type": "X", "timespan": 18}
    hook_order.check(order(good), MAJA)
    assert said in problems(good | values, MAJA)


def test_numbers_do_for_texts():
    hook_order.check(order({"output_storage": "TEMPORARY", "input_type": 24, "timespan": 18}), MAJA)


def test_all_problems_come_at_once_and_no_secret_among_them():
    secret = "a-real-secret-value"
    said = problems({"output_storage": "NOWHERE", "unknown": SecretStr(secret), "timespan": "x"}, MAJA, ("", ""))
    assert said.startswith("Nothing was ordered (6 problems):")
    assert secret not in said


def test_an_order_of_nothing_is_refused():
    assert "there is no product" in problems(
        {"output_storage": "TEMPORARY", "input_type": "X", "timespan": 1}, MAJA, ()
    )


# --- the name ---


def test_a_name_belongs_to_one_content_of_one_run(fill_in, settings):
    def name(run_id="one", options=None, **asked):
        wanted = fill_in(run_id=run_id, **asked)
        return hook_order.unique_name(wanted, hook_order.option_values(wanted, settings, HARVEST, options))

    assert name() == name()
    assert len({name(), name("two"), name(products=[GRD]), name(options={"x": 1}), name(collection="c")}) == 5
    assert name().startswith("first-order one ")


def test_a_name_does_not_depend_on_the_password(fill_in, settings):
    changed = settings.model_copy(update={"desp_password": SecretStr("another")})
    names = {
        hook_order.unique_name(fill_in(), hook_order.option_values(fill_in(), s, HARVEST)) for s in (settings, changed)
    }
    assert len(names) == 1
